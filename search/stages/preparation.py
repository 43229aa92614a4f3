"""Everything before the first candidate: teacher, text, ranking, basis, targets; each made once and reused.

A turned basis keeps more of what the teacher computes, but needs a head of its own. Where head and
embedding are tied in the teacher, that costs parameters which coordinates spend elsewhere; so both fill the
same budget, and the loss decides.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from evaluators.corpus.corpus import Corpus, CorpusRequest, read_corpus
from evaluators.huggingface.final_states import check_head
from evaluators.metrics.latency import LatencyCache
from evaluators.teacher import Teacher, load_teacher
from search.rungs.evaluation import CandidateError
from search.settings.config import RunConfig
from search.settings.costs import within_bounds
from search.settings.methods import accelerator_of, check_states, weights_dtype
from search.settings.resolution import Resolved
from search.stages.importance import load_or_rank, repair_of
from search.stages.run_context import BasisScore, BasisTrial, RunContext
from search.stages.targets import targets_of, teaching_model
from search.stages.trial import evaluate_candidate
from search.storage.run_directory import RunDirectory
from search.storage.workers import Workers
from search.terminal.console import Console
from search.training.process_group import run_processes
from search.training.training import TakeTargets
from space.axes.architecture import Architecture
from space.cutting.extraction import layers_kept, saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.enumeration.hand_made import baselines
from space.enumeration.search_space import SearchSpace


class BasisCandidate(NamedTuple):
    """One student that is to be tried."""

    basis: str
    origin: str
    """Of the baselines."""
    architecture: Architecture


def variants_of(resolved: Resolved) -> dict[str, Resolved]:
    """The run in every basis that is open, coordinates first."""
    variants = [resolved] if resolved.turned is None else [resolved, resolved.turned]
    return {variant.basis.value: variant for variant in variants}


def basis_candidates(resolved: Resolved) -> list[BasisCandidate]:
    """Who has to be tried: every baseline in every basis; nobody if the basis is settled.

    A basis is worth something where hidden is cut, and to untie a head costs something everywhere: each
    may spend the budget as it can.
    """
    variants = variants_of(resolved)
    if len(variants) == 1:
        return []
    return [
        BasisCandidate(name, origin, architecture)
        for name, one in variants.items()
        for origin, architecture in baselines(one.space, one.axis_map.teacher).items()
    ]


def score_in_basis(
    contestant: BasisCandidate, context: RunContext, advance: Callable[[int], None]
) -> BasisScore:
    """Score one hand-made student at rung 1, where all learn from the same batches.

    Args:
        contestant: who.
        context: of its basis.
        advance: told the tokens of each step.
    """
    loss: float | None
    try:
        loss = evaluate_candidate(context, contestant.architecture, 1, advance).values["loss"]
    except CandidateError:
        loss = None
    return BasisScore(
        contestant.basis,
        contestant.origin,
        contestant.architecture.label,
        context.space.parameters_of(contestant.architecture),
        loss,
    )


def cache_directory() -> Path:
    """Where texts and latencies are kept between runs: ``SLIMSEARCH_CACHE``, else the user's cache."""
    if named := os.environ.get("SLIMSEARCH_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimsearch"


def load(config: RunConfig, console: Console) -> tuple[Teacher, Corpus]:
    """Load the teacher and read the text; nothing is written to the run directory yet.

    Of the distillation set there is as much as the correction of the teacher reads, if that is more.

    Raises:
        InputError: the teacher or the text cannot be used.
    """
    with console.stage("teacher"):
        teacher = teacher_of(config)
        check_states(config, teacher.model)
    with console.stage("text"):
        return teacher, _read(config, teacher)


def teacher_of(config: RunConfig) -> Teacher:
    """The teacher of a run, as it was found.

    Raises:
        InputError: it cannot be used.
    """
    return load_teacher(
        config.teacher,
        revision=config.revision or None,
        device=torch.device(config.device),
        dtype=weights_dtype(config),
        trust_remote_code=config.trust_remote_code,
    )


def prepare(
    resolved: Resolved,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    workers: Workers | None = None,
) -> RunContext:
    """Rank the teacher, cache its targets, and lay out all that candidates are evaluated with.

    Of several workers one makes what is missing, and the others wait for it.

    Raises:
        InputError: the teacher's head cannot be told apart, activations are not finite, the targets do
            not fit on the disk, or another model than the teacher cannot teach.
    """
    config = resolved.config
    check_head(teacher.model)
    accelerator = accelerator_of(config)
    workers = workers or Workers()
    with workers.exclusive_or_wait("targets", console.say), console.stage("targets"):
        teaching = teaching_model(config, teacher)
        targets = targets_of(resolved, teaching, corpus, directory, accelerator, console)
    run_processes().send_command(TakeTargets(len(corpus.distillation)))

    def context(variant: Resolved) -> RunContext:
        tried = [] if variant.config.basis == variant.basis else [directory.ranking_of(variant.basis.value)]
        moments = directory.moments_of(variant.basis.value)
        ranking = load_or_rank(variant, teacher, corpus, [directory.ranking, *tried], moments, console)
        repair = repair_of(variant, teacher, corpus, ranking, moments, console)
        weights = saved_tensors(teacher.model, variant.axis_map)
        return RunContext(
            config,
            directory.path,
            teacher,
            teaching,
            variant.axis_map,
            _searched(variant, teacher, ranking),
            corpus,
            ranking,
            sort_by_importance(weights, variant.axis_map, ranking),
            repair,
            *targets,
            accelerator,
            LatencyCache(cache_directory() / "latencies.jsonl"),
            variant.costs.workload,
        )

    with workers.exclusive_or_wait("ranking", console.say):
        return _settled(resolved, context, directory, console)


def _searched(variant: Resolved, teacher: Teacher, ranking: Ranking) -> SearchSpace:
    """The space within the bounds, now that it is known how weights are stored and which layers stay."""
    costs = replace(variant.costs, value_bytes=teacher.stored_dtype.itemsize)
    kept_of = partial(layers_kept, variant.axis_map, ranking)
    return within_bounds(variant.whole, costs, variant.config.upper_bounds, kept_of)


def _settled(
    resolved: Resolved, context: Callable[[Resolved], RunContext], directory: RunDirectory, console: Console
) -> RunContext:
    """The workbench of the basis that the user named, or of the better one of two."""
    if resolved.turned is None:
        with console.stage("ranking"):
            return context(resolved)
    trial = BasisTrial.load(directory.basis, resolved.config.rung_tokens[0])
    variants, waiting = variants_of(resolved), basis_candidates(resolved)[len(trial.tried) :]
    console.forecast.skip("distil", trial.tokens * len(trial.tried), pieces=len(trial.tried))
    with console.stage("ranking"):
        names = {contestant.basis for contestant in waiting} or {trial.basis}
        benches = {name: context(variants[name]) for name in variants if name in names}
    with console.stage("basis"):
        for contestant in waiting:
            text = f"trying the {contestant.basis} basis: {contestant.architecture.label}"
            with console.work(text, "distil", trial.tokens) as advance:
                trial = trial.plus(score_in_basis(contestant, benches[contestant.basis], advance))
            trial.save(directory.basis)
    console.say(trial.reason)
    made = benches.get(trial.basis) or context(variants[trial.basis])
    made.ranking.save(directory.ranking)
    for name in variants:
        directory.ranking_of(name).unlink(missing_ok=True)
        if name != trial.basis:
            directory.moments_of(name).unlink(missing_ok=True)
    return replace(made, basis_trial=trial)


def _read(config: RunConfig, teacher: Teacher) -> Corpus:
    correction_blocks = math.ceil(config.teacher_correction / config.block)
    request = CorpusRequest(
        data=config.data,
        block=config.block,
        calibration_blocks=config.calibration_blocks,
        distillation_blocks=max(config.distillation_blocks, correction_blocks),
        validation_blocks=config.validation_blocks,
    )
    return read_corpus(request, teacher.tokenizer, config.data, cache_directory() / "text").mixed()
