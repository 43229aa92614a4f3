"""Everything before the first candidate: teacher, text, targets, ranking, basis; each made once and reused.

A rotated basis of hidden preserves more of the teacher's function, but that is not all that a student learns
by. So a trial trains hand-made students in both bases, and the loss decides. A basis that changes the whole
teacher, since some of its norms cannot be folded, is not tried if that costs more than a hundredth of a nat.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from evaluators.corpus.blocks import Corpus
from evaluators.huggingface.final_states import check_head
from evaluators.importance.kept_coordinates import TOLERANCE
from evaluators.metrics.latency import LatencyCache
from evaluators.teacher import Teacher, load_teacher
from evaluators.teacher.written_once import cache_directory
from search.rungs.evaluation import CandidateError
from search.settings.config import RunConfig
from search.settings.costs import within_bounds
from search.settings.methods import accelerator_of, check_states, weights_dtype
from search.settings.placement import Placement
from search.settings.resolved import Resolved
from search.stages.identity import check_identity
from search.stages.importance import Importance
from search.stages.rates import RateStage
from search.stages.run_context import BasisScore, BasisTrial, RunContext
from search.stages.sorted_weights import SortedWeights
from search.stages.targets import targets_of, teaching_model
from search.stages.task_scores import TaskScoring
from search.stages.text import read_text
from search.stages.trial import evaluate_candidate
from search.storage.run_directory import RunDirectory
from search.storage.workers import Workers
from search.terminal.console import Console
from search.training.process_group import run_processes
from search.training.training import TakeTargets
from space.axes.architecture import Architecture
from space.cutting.basis import BasisName
from space.cutting.extraction import layers_kept
from space.cutting.ranking import Ranking
from space.cutting.sorted_file import remove_sorted
from space.enumeration.search_space import SearchSpace
from space.input_error import InputError


class BasisCandidate(NamedTuple):
    """A student of the trial that chooses the basis of hidden."""

    basis: str
    origin: str
    """Name of the baseline."""
    architecture: Architecture


def variants_of(resolved: Resolved) -> dict[str, Resolved]:
    """Return the run in every basis that is still open, coordinates first."""
    variants = [resolved] if resolved.turned is None else [resolved, resolved.turned]
    return {variant.basis.value: variant for variant in variants}


def basis_candidates(resolved: Resolved) -> list[BasisCandidate]:
    """List the students of the trial, the same in every basis; empty if the basis is already fixed."""
    variants = variants_of(resolved)
    if len(variants) == 1:
        return []
    return [
        BasisCandidate(name, origin, architecture)
        for name in variants
        for origin, architecture in resolved.compared_in_bases.items()
    ]


def score_in_basis(
    candidate: BasisCandidate, context: RunContext, advance: Callable[[int], None]
) -> BasisScore:
    """Score one hand-made student at rung 1, where all students train on the same batches.

    Args:
        candidate: the student.
        context: context in the student's basis.
        advance: called with the tokens of each step.
    """
    loss: float | None
    try:
        loss = evaluate_candidate(context, candidate.architecture, 1, advance).values["loss"]
    except CandidateError:
        loss = None
    return BasisScore(
        candidate.basis,
        candidate.origin,
        candidate.architecture.label,
        context.space.parameters_of(candidate.architecture),
        loss,
    )


def load(config: RunConfig, console: Console, placement: Placement = Placement()) -> tuple[Teacher, Corpus]:
    """Load the teacher and read the text; nothing is written to the run directory yet.

    The distillation set is extended to what the correction of the teacher reads, if that is more.

    Raises:
        InputError: the teacher or the text cannot be used.
    """
    with console.stage("teacher"):
        teacher = teacher_of(config, stays=placement.teacher_stays)
        check_states(config, teacher.model)
    with console.stage("text"):
        return teacher, read_text(config, teacher, placement)


def teacher_of(config: RunConfig, *, stays: bool) -> Teacher:
    """Load the teacher of a run, uncorrected.

    Args:
        config: configuration of the run.
        stays: whether it lies on the device for good.

    Raises:
        InputError: the teacher cannot be used.
    """
    return load_teacher(
        config.teacher,
        revision=config.revision or None,
        device=torch.device(config.device),
        dtype=weights_dtype(config),
        trust_remote_code=config.trust_remote_code,
        stays=stays,
    )


def prepare(
    resolved: Resolved,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    workers: Workers | None = None,
) -> RunContext:
    """Cache the teacher's targets, rank it, and build the context that candidates are evaluated in.

    Of several workers one does this, and the others wait and reuse the results.

    Raises:
        InputError: the teacher's head cannot be separated from its body, activations are not finite, the
            targets do not fit on the disk, the model named to teach cannot, or the uncut student is not the
            teacher.
    """
    config = resolved.config
    with nullcontext() if resolved.placement.layer_by_layer else teacher.on_device():
        check_head(teacher.model)
    accelerator = accelerator_of(config)
    workers = workers or Workers()
    with workers.exclusive_or_wait("targets", console.say), console.stage("targets"):
        teaching = teaching_model(config, teacher)
        targets = targets_of(resolved, teaching, corpus, directory, accelerator, console)
    run_processes().send_command(TakeTargets(len(corpus.distillation)))

    importance = Importance(resolved, teacher, corpus, directory, console)

    def context(variant: Resolved) -> RunContext:
        ranking = importance.rank([variant])[variant.basis]
        if _changes_teacher(ranking):
            raise _costly_basis(variant.basis, ranking)
        repair = importance.repair_of(variant, ranking)
        weights = _sorted_weights(variant, resolved.placement, teacher, ranking, directory)
        if not (directory.summary.exists() or resolved.placement.layer_by_layer):
            block = corpus.calibration[0]
            check_identity(teacher.residence, variant.axis_map, ranking, weights.tensors, block)
        return RunContext(
            config,
            directory.path,
            teacher,
            teaching,
            variant.axis_map,
            _space_within_bounds(variant, teacher, ranking),
            corpus,
            ranking,
            weights,
            repair,
            *targets,
            accelerator,
            LatencyCache(cache_directory() / "latencies.jsonl"),
            variant.costs.workload,
            resolved.placement,
        )

    with workers.exclusive_or_wait("ranking", console.say):
        rated = RateStage(resolved, directory, console).rated(context)
        found = _in_best_basis(resolved, importance, rated, directory, console)
    return replace(found, tasks=TaskScoring.of(config, teacher, directory.tasks, console))


def _changes_teacher(ranking: Ranking) -> bool:
    """Return whether the basis changes what the whole teacher computes by more than is allowed."""
    return ranking.basis is not None and ranking.basis.loss_added > TOLERANCE


def _costly_basis(name: BasisName, ranking: Ranking) -> InputError:
    assert ranking.basis is not None
    kept, size = ranking.basis.kept, len(ranking.basis.energy)
    return InputError(
        f"A basis may add {TOLERANCE:g} nats per token to the whole teacher's loss",
        f"the {name} one adds {ranking.basis.loss_added:.3f} even where it keeps {kept} of {size} "
        "coordinates, as some norms cannot be folded into matrices",
        f"Take --basis {BasisName.COORDINATE}",
    )


def _sorted_weights(
    variant: Resolved, placement: Placement, teacher: Teacher, ranking: Ranking, directory: RunDirectory
) -> SortedWeights:
    """Return the sorted weights of a basis, written unless the run is complete: it cuts no more students."""
    weights = SortedWeights(
        directory.sorted_of(variant.basis.value),
        teacher,
        variant.axis_map,
        ranking,
        stay=placement.sorted_stay,
        from_disk=placement.layer_by_layer,
    )
    if not directory.summary.exists():
        weights.write()
    return weights


def _space_within_bounds(variant: Resolved, teacher: Teacher, ranking: Ranking) -> SearchSpace:
    """Restrict the space by the bounds; the stored dtype and the layers that students keep are now known."""
    costs = replace(variant.costs, value_bytes=teacher.stored_dtype.itemsize)
    kept_of = partial(layers_kept, variant.axis_map, ranking)
    return within_bounds(variant.whole, costs, variant.config.upper_bounds, kept_of)


def _in_best_basis(
    resolved: Resolved,
    importance: Importance,
    context: Callable[[Resolved], RunContext],
    directory: RunDirectory,
    console: Console,
) -> RunContext:
    """Return the context in the basis that the user named, or in the better one of two by trial.

    Of the sorted weights, one basis is in memory at a time.

    Args:
        resolved: the run.
        importance: ranks in all bases that are tried, at once.
        context: makes the context in a basis, with its learning rates.
        directory: run directory.
        console: for progress.
    """
    if resolved.turned is None:
        return context(resolved)
    trial = BasisTrial.load(directory.basis, resolved.config.trial_tokens)
    variants, waiting = variants_of(resolved), basis_candidates(resolved)[len(trial.tried) :]
    console.forecast.skip("distil", trial.tokens * len(trial.tried), pieces=len(trial.tried))
    current: RunContext | None = None
    here = ""
    with console.stage("ranking"):
        rankings = importance.rank([variants[name] for name in dict.fromkeys(one.basis for one in waiting)])
    waiting = [one for one in waiting if not _changes_teacher(rankings[BasisName(one.basis)])]
    for name, candidates in itertools.groupby(waiting, key=lambda candidate: candidate.basis):
        current = None
        current, here = context(variants[name]), name
        with console.stage("basis"):
            for candidate in candidates:
                trial = _tried(candidate, trial, current, console)
                trial.save(directory.basis)
    console.say(trial.reason)
    if current is None or here != trial.basis:
        current = None
        current = context(variants[trial.basis])
    current.ranking.save(directory.ranking)
    for name in variants:
        directory.ranking_of(name).unlink(missing_ok=True)
        if name != trial.basis:
            remove_sorted(directory.sorted_of(name))
    return replace(current, basis_trial=trial)


def _tried(candidate: BasisCandidate, trial: BasisTrial, context: RunContext, console: Console) -> BasisTrial:
    """Return the trial with the result of one more student."""
    text = f"trying the {candidate.basis} basis: {candidate.architecture.label}"
    with console.work(text, "distil", trial.tokens) as advance:
        return trial.plus(score_in_basis(candidate, context, advance))
