"""The promoted, and what they are compared to, distilled to the end and written as Hugging Face models.

Every worker takes what nobody else is at, and waits for the rest at the end.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluators.distillation.loop import Checkpointing, DivergenceError
from evaluators.huggingface.library_output import quiet_libraries
from evaluators.metrics.loss import bits_per_byte
from evaluators.teacher.writing import write_directory
from search.rungs.bracket import by_pareto_rank
from search.rungs.evaluation import RANDOM_WEIGHTS, SEARCH, FinishedTrial, Retrained
from search.rungs.rung import Rung
from search.runs.choice import choose, eligible
from search.settings.config import RunConfig
from search.stages.run_context import RunContext
from search.stages.trial import remove_branches, retraining_branch, tokens_spared
from search.storage.run_directory import atomic_write
from search.storage.workers import Workers
from search.terminal.console import Console, clock
from space.axes.architecture import Architecture
from space.cutting.extraction import student_config
from space.enumeration.hand_made import baselines

#: Of a retraining, at equal distances.
VALIDATIONS = 6


@dataclass(frozen=True)
class RetrainingJob:
    """What is to be retrained."""

    architecture: Architecture
    origin: str
    number: int
    """Of the model's folder."""

    @property
    def key(self) -> str:
        """Names the retraining within the run."""
        kind = RANDOM_WEIGHTS if self.origin == RANDOM_WEIGHTS else "pruned"
        return f"{kind}-{self.architecture.label}"

    @property
    def folder(self) -> str:
        """Of the model, below ``models/``."""
        return f"{self.number:02d}-{self.architecture.label}"


def finished(context: RunContext, assignment: RetrainingJob) -> Retrained | None:
    """The result of a retraining that an earlier process finished."""
    path = context.directory / "retraining" / f"{assignment.key}.json"
    if not path.exists():
        return None
    _checkpointing(context, assignment).remove()  # which that process may not have come to
    fields = json.loads(path.read_text())
    fields["architecture"] = Architecture(**fields["architecture"])
    fields["curve"] = [(tokens, loss) for tokens, loss in fields["curve"]]
    return Retrained(**fields)


def retrain(context: RunContext, assignment: RetrainingJob, advance: Callable[[int], None]) -> Retrained:
    """Distil a candidate for all of the retraining tokens, from where an earlier process stopped.

    The model has the weights with the lowest validation loss of all that were seen on the way.
    One that diverges in spite of a step back at a lower rate, or does not fit into memory block by block, is
    recorded with the reason.

    A model from random weights is measured and not kept.

    Raises:
        OSError: the disk is full; after space is made the retraining goes on where it was.
    """
    saving = _checkpointing(context, assignment)
    try:
        result = _retrain(context, assignment, saving, advance)
    except (DivergenceError, torch.OutOfMemoryError) as error:
        result = Retrained(
            assignment.architecture, assignment.origin, None, None, 0, 0.0, [], None, str(error)
        )
    path = saving.path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(asdict(result)))
    saving.remove()
    return result


def _checkpointing(context: RunContext, assignment: RetrainingJob) -> Checkpointing:
    path = context.directory / "retraining" / f"{assignment.key}.safetensors"
    return Checkpointing(
        path=path,
        best=path.with_suffix(".best.safetensors"),
        key=f"{assignment.key} {context.config.retrain_tokens}",
    )


def _retrain(
    context: RunContext, assignment: RetrainingJob, saving: Checkpointing, advance: Callable[[int], None]
) -> Retrained:
    architecture = assignment.architecture
    from_random = assignment.origin == RANDOM_WEIGHTS
    student = _random(context, architecture) if from_random else context.extract(architecture)
    if not from_random:
        saving = retraining_branch(context, architecture, saving)
    known = tokens_spared(context, saving)
    outcome = context.train(
        student, context.config.retrain_tokens, context.retraining_targets, advance, VALIDATIONS, saving
    )
    path = None
    if not from_random:
        path = f"models/{assignment.folder}"
        write_model(context, student, context.directory / path)
        student = reload(context, context.directory / path)
    loss = context.exact_loss(student)
    validation = context.corpus.validation
    predicted = validation.shape[0] * (validation.shape[1] - 1)
    return Retrained(
        architecture,
        assignment.origin,
        loss,
        bits_per_byte(loss, predicted, context.corpus.validation_bytes),
        outcome.tokens,
        outcome.seconds,
        [(tokens, value) for tokens, value in outcome.curve if math.isfinite(value)],
        path,
        note=outcome.note,
        branch_tokens=known,
    )


def _random(context: RunContext, architecture: Architecture) -> PreTrainedModel:
    kept = context.kept_layers(architecture)
    torch.manual_seed(context.config.seed)
    config = student_config(context.axis_map, architecture, kept)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    nn.Module.to(model, context.teacher.model.device)
    return model


def write_model(context: RunContext, student: PreTrainedModel, path: Path) -> None:
    """Write a directory that transformers loads, in the dtype of the teacher's weights on disk."""
    student.generation_config = context.teacher.model.generation_config
    write_directory(student, context.teacher.tokenizer, context.teacher.stored_dtype, path)


def reload(context: RunContext, path: Path) -> PreTrainedModel:
    """The model as anybody will load it."""
    with quiet_libraries():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=context.teacher.model.dtype)
    nn.Module.to(model, context.teacher.model.device)
    model.eval()
    return model


_POLL_SECONDS = 0.5


def retrain_all(
    context: RunContext, rungs: Sequence[Rung], workers: Workers, console: Console
) -> tuple[list[Retrained], list[Retrained]]:
    """Retrain the promoted candidates; if asked, baselines and the chosen one from random weights too.

    Returns:
        The promoted, the lowest loss first, and the others.
    """
    chosen = promoted_of(rungs[-1].feasible(), context.config)
    assignments = [
        RetrainingJob(record.architecture, record.origin, number)
        for number, record in enumerate(chosen, start=1)
    ]
    if context.config.retrain_baselines and (chosen or not rungs[-1].bounds):
        assignments += _baseline_assignments(context, chosen)
    results = _retrained(context, assignments, workers, console)
    promoted, others = results[: len(chosen)], results[len(chosen) :]
    best = choose(eligible(results, rungs)) if context.config.retrain_baselines else None
    if best is not None:
        winner = next(r.architecture for r in results if r.label == best.label)
        others += _retrained(context, [RetrainingJob(winner, RANDOM_WEIGHTS, 0)], workers, console)
    return sorted(promoted, key=lambda r: (r.loss is None, r.loss)), others


def promoted_of(top: Sequence[FinishedTrial], config: RunConfig) -> list[FinishedTrial]:
    """Who of the last rung is retrained: by turns the lowest loss, and the first by Pareto rank and crowding.

    Crowding alone would spend its places on the ends of the front; the model that is chosen at last is one
    with a low loss, and whose is the lowest a rung only guesses (studies/exhaustive).
    """
    by_loss = by_pareto_rank(("loss",), top)
    by_rank = by_pareto_rank(config.objectives, top)
    turns = dict.fromkeys(itertools.chain.from_iterable(zip(by_loss, by_rank, strict=True)))
    return [top[place] for place in itertools.islice(turns, config.promote)]


def _baseline_assignments(context: RunContext, promoted: Sequence[FinishedTrial]) -> list[RetrainingJob]:
    """The hand-made baselines; one that was promoted is retrained already and read from its result."""
    found = baselines(context.space, context.axis_map.teacher)
    return [
        RetrainingJob(architecture, origin, len(promoted) + number)
        for number, (origin, architecture) in enumerate(found.items(), start=1)
    ]


def _retrained(
    context: RunContext, assignments: Sequence[RetrainingJob], workers: Workers, console: Console
) -> list[Retrained]:
    """The results of all, in order, whoever retrains each."""
    results: dict[int, Retrained] = {}
    while len(results) < len(assignments):
        before = len(results)
        for place, assignment in enumerate(assignments):
            if place in results:
                continue
            with workers.attempt(f"retraining-{assignment.key}") as free:
                if free:
                    results[place] = _retrain_one(context, assignment, console)
        if len(results) == before:
            time.sleep(_POLL_SECONDS)
    return [results[place] for place in range(len(assignments))]


def _retrain_one(context: RunContext, assignment: RetrainingJob, console: Console) -> Retrained:
    tokens = context.config.retrain_tokens
    if (result := finished(context, assignment)) is not None:
        console.forecast.skip("retrain", tokens, pieces=1)
        remove_branches(context, assignment.architecture)
        return result
    with console.work(f"retraining {assignment.architecture.label}", "retrain", tokens) as advance:
        result = retrain(context, assignment, advance)
    remove_branches(context, assignment.architecture)
    outcome = f"loss {result.loss:.4f}" if result.loss is not None else f"failed: {result.failure}"
    origin = "" if assignment.origin == SEARCH else f" ({assignment.origin})"
    console.say(f"retrained {result.label}{origin}: {outcome}   {clock(console.forecast.left())} left")
    return result
