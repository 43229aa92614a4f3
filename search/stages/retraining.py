"""Retraining: distils the promoted candidates and baselines in full, and writes them as Hugging Face models.

Each worker takes jobs that no other worker is running, and at the end waits for the remaining ones.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluators.distillation.loop import Checkpointing, DivergenceError
from evaluators.huggingface.library_output import quiet_libraries
from evaluators.teacher.towers import write_whole
from evaluators.teacher.writing import write_directory
from search.rungs.bracket import by_pareto_rank
from search.rungs.evaluation import RANDOM_WEIGHTS, SEARCH, FinishedTrial, Retrained
from search.rungs.rung import Rung
from search.runs.choice import choose, eligible
from search.settings.config import RunConfig
from search.settings.run_time import RETRAINING_VALIDATIONS
from search.settings.towers import towers_of
from search.stages.run_context import RunContext
from search.stages.trial import remove_branches, retraining_branch, tokens_spared
from search.storage.run_directory import atomic_write
from search.storage.workers import Workers
from search.terminal.console import Console, clock
from space.axes.architecture import Architecture
from space.cutting.extraction import stream_columns, student_config
from space.enumeration.hand_made import baselines


@dataclass(frozen=True)
class RetrainingJob:
    """A model to retrain."""

    architecture: Architecture
    origin: str
    number: int
    """The number in the name of the model's folder."""
    tokens: int
    """Training tokens."""
    short: bool = False
    """Whether these are the fewer tokens of a baseline behind the best one, or of random weights."""

    @property
    def key(self) -> str:
        """The name of this job within the run."""
        kind = RANDOM_WEIGHTS if self.origin == RANDOM_WEIGHTS else "pruned"
        return f"{kind}-{self.architecture.label}"

    @property
    def folder(self) -> str:
        """The model's folder below ``models/``."""
        return f"{self.number:02d}-{self.architecture.label}"


def finished(context: RunContext, job: RetrainingJob) -> Retrained | None:
    """Return the result of a retraining that an earlier process finished; None if there is none."""
    path = context.directory / "retraining" / f"{job.key}.json"
    if not path.exists():
        return None
    _checkpointing(context, job).remove()  # in case that process stopped before it removed them
    fields = json.loads(path.read_text())
    fields["architecture"] = Architecture(**fields["architecture"])
    fields["curve"] = [(tokens, loss) for tokens, loss in fields["curve"]]
    return Retrained(**fields)


def retrain(
    context: RunContext,
    job: RetrainingJob,
    advance: Callable[[int], None],
    say: Callable[[str], None] = lambda text: None,
) -> Retrained:
    """Distil a candidate for all of the retraining tokens; resume where an earlier process stopped.

    The model gets the weights with the lowest validation loss seen during training. A model that diverges
    even after a step back at a lower rate, or that does not fit into memory with a micro-batch of one block,
    is recorded with the reason. A model from random weights is measured and not kept.

    Args:
        context: context of the run.
        job: what to retrain.
        advance: called with the tokens of each step.
        say: called with a line when the training is done and the model is written and measured.

    Raises:
        OSError: the disk is full; once there is space, the retraining resumes where it stopped.
    """
    saving = _checkpointing(context, job)
    try:
        result = _retrain(context, job, saving, advance, say)
    except (DivergenceError, torch.OutOfMemoryError) as error:
        result = Retrained(job.architecture, job.origin, None, None, 0, 0.0, [], None, str(error))
    path = saving.path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(asdict(result)))
    saving.remove()
    return result


def _checkpointing(context: RunContext, job: RetrainingJob) -> Checkpointing:
    path = context.directory / "retraining" / f"{job.key}.safetensors"
    return Checkpointing(
        path=path,
        best=path.with_suffix(".best.safetensors"),
        key=f"{job.key} {job.tokens}",
    )


def _retrain(
    context: RunContext,
    job: RetrainingJob,
    saving: Checkpointing,
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> Retrained:
    architecture = job.architecture
    from_random = job.origin == RANDOM_WEIGHTS
    student = _from_random_weights(context, architecture) if from_random else context.extract(architecture)
    if not from_random:
        saving = retraining_branch(context, architecture, saving)
    reused_tokens = tokens_spared(context, saving)
    rate = None
    if from_random:
        rate = context.rates.from_random_weights(context.config, student.num_parameters(), job.tokens)
    outcome = context.train(
        student, job.tokens, context.retraining_targets, advance, RETRAINING_VALIDATIONS, saving, rate
    )
    tokens = context.corpus.validation.numel()
    say(f"trained {architecture.label}: writing it, and measuring it on {tokens:,} tokens")
    path = None
    if not from_random:
        path = f"models/{job.folder}"
        write_model(context, student, context.directory / path)
        if context.config.keep_towers:
            _write_whole(context, architecture, context.directory / path)
        student = reload(context, context.directory / path)
    loss = context.exact_loss(student)
    values, details = context.tasks.measured_or_said(
        student, f"{job.key} {job.tokens} {context.ranking.fingerprint}"
    )
    return Retrained(
        architecture,
        job.origin,
        loss,
        context.bits_per_byte(loss),
        outcome.tokens,
        outcome.seconds,
        [(tokens, value) for tokens, value in outcome.curve if math.isfinite(value)],
        path,
        note=outcome.note,
        short=job.short,
        branch_tokens=reused_tokens,
        objectives=values,
        details=details,
    )


def _from_random_weights(context: RunContext, architecture: Architecture) -> PreTrainedModel:
    kept = context.kept_layers(architecture)
    torch.manual_seed(context.config.seed)
    config = student_config(context.axis_map, architecture, kept)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    nn.Module.to(model, context.teacher.residence.device)
    return model


def write_model(context: RunContext, student: PreTrainedModel, path: Path) -> None:
    """Write a directory that transformers loads, each tensor in the dtype that the teacher's files have."""
    student.generation_config = context.teacher.model.generation_config
    teacher = context.teacher
    write_directory(
        student, teacher.tokenizer, teacher.stored_dtype, path, teacher.other_dtypes, teacher.directory
    )


def _write_whole(context: RunContext, architecture: Architecture, path: Path) -> None:
    """Write the whole model with a student in it beside the student's directory."""
    towers = towers_of(context.config, context.axis_map, architecture, context.kept_layers(architecture))
    columns = stream_columns(context.axis_map, context.ranking, architecture.hidden)
    place, teacher = path.with_name(f"{path.name}-whole"), context.teacher
    write_whole(teacher.directory, path, place, towers, teacher.model, columns)


def reload(context: RunContext, path: Path) -> PreTrainedModel:
    """Load a written model the way that its users will."""
    with quiet_libraries():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=context.teacher.model.dtype)
    nn.Module.to(model, context.teacher.residence.device)
    model.eval()
    return model


_POLL_SECONDS = 0.5


def retrain_all(
    context: RunContext, rungs: Sequence[Rung], workers: Workers, console: Console
) -> tuple[list[Retrained], list[Retrained]]:
    """Retrain the promoted candidates; if configured, also baselines and the chosen one from random weights.

    Returns:
        The results of the promoted candidates, lowest loss first, and the other results.
    """
    chosen, config = promoted_of(rungs[-1].feasible(), context.config), context.config
    jobs = [
        RetrainingJob(record.architecture, record.origin, number, config.retrain_tokens)
        for number, record in enumerate(chosen, start=1)
    ]
    if config.retrain_baselines and (chosen or not rungs[-1].bounds):
        jobs += _baseline_jobs(context, chosen, rungs)
    results = _run_jobs(context, jobs, workers, console)
    promoted, others = results[: len(chosen)], results[len(chosen) :]
    best = choose(eligible(results, rungs)) if config.retrain_baselines else None
    if best is not None:
        winner = next(r.architecture for r in results if r.label == best.label)
        others += _run_jobs(
            context,
            [RetrainingJob(winner, RANDOM_WEIGHTS, 0, config.short_retrain_tokens, short=True)],
            workers,
            console,
        )
    return sorted(promoted, key=lambda r: (r.loss is None, r.loss)), others


def promoted_of(top: Sequence[FinishedTrial], config: RunConfig) -> list[FinishedTrial]:
    """Pick the candidates of the last rung to retrain: alternately by loss, and by Pareto rank and crowding.

    Crowding distance alone would favour the ends of the front. The model that is finally chosen has a low
    loss, and a rung only estimates which candidate's loss will be the lowest (studies/exhaustive).
    """
    by_loss = by_pareto_rank(("loss",), top)
    by_rank = by_pareto_rank(config.objectives, top)
    turns = dict.fromkeys(itertools.chain.from_iterable(zip(by_loss, by_rank, strict=True)))
    return [top[place] for place in itertools.islice(turns, config.promote)]


def _baseline_jobs(
    context: RunContext, promoted: Sequence[FinishedTrial], rungs: Sequence[Rung]
) -> list[RetrainingJob]:
    """List jobs for the hand-made baselines; a promoted one is not trained again, its result is read.

    The search has to beat the best baseline, so that one gets as many tokens as the promoted. The others came
    out behind it at the rungs; a quarter of the tokens shows where they stand.
    """
    found = baselines(context.space, context.axis_map.teacher)
    in_full = {record.architecture for record in promoted} | {_best_of(found.values(), rungs)}
    config = context.config
    full, reduced = (config.retrain_tokens, False), (config.short_retrain_tokens, True)
    return [
        RetrainingJob(architecture, origin, len(promoted) + number, *tokens)
        for number, (origin, architecture) in enumerate(found.items(), start=1)
        for tokens in [full if architecture in in_full else reduced]
    ]


def _best_of(architectures: Iterable[Architecture], rungs: Sequence[Rung]) -> Architecture | None:
    """Return the architecture with the lowest loss at the highest rung that any of them completed."""
    wanted = set(architectures)
    for rung in reversed(rungs):
        found = [record for record in rung.complete() if record.architecture in wanted]
        if found:
            return min(found, key=lambda record: record.values(("loss",))).architecture
    return None


def _run_jobs(
    context: RunContext, jobs: Sequence[RetrainingJob], workers: Workers, console: Console
) -> list[Retrained]:
    """Return the results of all jobs, in order, whichever worker runs each."""
    results: dict[int, Retrained] = {}
    while len(results) < len(jobs):
        before = len(results)
        for place, job in enumerate(jobs):
            if place in results:
                continue
            with workers.attempt(f"retraining-{job.key}") as free:
                if free:
                    results[place] = _run_job(context, job, console)
        if len(results) == before:
            time.sleep(_POLL_SECONDS)
    return [results[place] for place in range(len(jobs))]


def _run_job(context: RunContext, job: RetrainingJob, console: Console) -> Retrained:
    if (result := finished(context, job)) is not None:
        console.forecast.skip("retrain", job.tokens, pieces=1)
        remove_branches(context, job.architecture)
        return result
    with console.work(f"retraining {job.architecture.label}", "retrain", job.tokens) as advance:
        result = retrain(context, job, advance, console.say)
    remove_branches(context, job.architecture)
    outcome = f"loss {result.loss:.4f}" if result.loss is not None else f"failed: {result.failure}"
    origin = "" if job.origin == SEARCH else f" ({job.origin})"
    console.say(f"retrained {result.label}{origin}: {outcome}   {clock(console.forecast.left())} left")
    return result
