"""Evaluates one candidate at one rung: cut, measure, and above rung 0 distil, resuming a branch if possible.

Under the WSD schedule a short training equals the beginning of a longer one until its learning rate starts
to fall (arXiv 2404.06395). The state at that point is saved as a branch, from which the next rung, and at the
end retraining, resume. A branch takes the space of three copies of the student, so unneeded ones are removed.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from transformers import PreTrainedModel

from evaluators.distillation.checkpoint import read_metadata
from evaluators.distillation.saving import Checkpointing
from evaluators.distillation.schedule import DivergenceError, ScheduleShape
from evaluators.distillation.training import Advance
from search.rungs.bracket import dominates
from search.rungs.evaluation import SEARCH, CandidateError, Evaluation, FinishedTrial
from search.rungs.rung import Rung
from search.settings.config import RunConfig
from search.settings.objectives import Bounds, excess_over
from search.settings.run_time import RUNG_VALIDATIONS
from search.stages.run_context import RunContext
from space.axes.architecture import Architecture


def rung_branch(context: RunContext, architecture: Architecture, rung: int) -> Checkpointing | None:
    """Return the files of a short distillation; None if the schedule has no branches.

    Args:
        context: context of the run.
        architecture: architecture of the candidate.
        rung: number of the rung, at least 1.
    """
    if not _branching(context.config):
        return None
    path = _branch(context.directory, architecture, rung)
    key = f"{architecture.label} rung {rung} {context.ranking.fingerprint}"
    files = Checkpointing(path=path.with_suffix(".checkpoint"), key=key, branch=path)
    return _from_lower_rung(context, architecture, rung, files)


def retraining_branch(context: RunContext, architecture: Architecture, files: Checkpointing) -> Checkpointing:
    """Return the files of a retraining; under WSD with the branch of the last rung to start from."""
    return (
        _from_lower_rung(context, architecture, context.config.rungs, files)
        if _branching(context.config)
        else files
    )


def tokens_spared(context: RunContext, files: Checkpointing | None) -> int:
    """Count the tokens that a training skips because it resumes an existing branch."""
    metadata = read_metadata(files.start) if files is not None and files.start is not None else None
    return metadata["step"] * context.config.batch_blocks * context.config.block if metadata else 0


def remove_unneeded_branches(context: RunContext, rungs: Sequence[Rung], bracket: Sequence[int]) -> None:
    """Remove the branches that no training will resume.

    A branch stays if its candidate is running at the next rung or may still be promoted to one of the free
    places there; at the last rung, if it may still be retrained.

    Args:
        context: context of the run.
        rungs: all rungs, rung 0 first.
        bracket: number of candidates of each rung.
    """
    if not _branching(context.config):
        return
    objectives = context.config.objectives
    for rung in rungs[1:-1]:
        above = rungs[rung.index + 1]
        done = {record.architecture for record in above.records()}
        left = bracket[above.index] - above.count()
        waiting = [r for r in rung.feasible() if r.architecture not in above.entered()]
        kept = (above.entered() - done) | set(_maybe_best(waiting, objectives, left))
        _keep_only(context.directory, rung.index, kept)
    top = rungs[-1].feasible()
    hand_made = [r.architecture for r in top if r.origin != SEARCH and context.config.retrain_baselines]
    _keep_only(
        context.directory,
        rungs[-1].index,
        {*_maybe_best(top, objectives, context.config.promote), *hand_made},
    )


def remove_branches(context: RunContext, architecture: Architecture) -> None:
    """Remove the branches of a retrained candidate, and the folder once it is empty."""
    for rung in range(1, context.config.rungs):
        _branch(context.directory, architecture, rung).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or another worker was quicker
        (context.directory / "branches").rmdir()


def _branching(config: RunConfig) -> bool:
    return config.schedule == ScheduleShape.WSD


def _from_lower_rung(
    context: RunContext, architecture: Architecture, rung: int, files: Checkpointing
) -> Checkpointing:
    start = _branch(context.directory, architecture, rung - 1) if rung > 1 else None
    return replace(files, start=start, stem=f"{architecture.label} {context.ranking.fingerprint}")


def _branch(directory: Path, architecture: Architecture, rung: int) -> Path:
    return directory / "branches" / f"{architecture.label}-rung{rung}.safetensors"


def _maybe_best(
    records: Sequence[FinishedTrial], objectives: tuple[str, ...], number: int
) -> list[Architecture]:
    """Return the candidates that fewer than ``number`` others dominate: any of these may be picked."""
    if number <= 0 or not records:
        return []
    better = dominates(np.asarray([record.values(objectives) for record in records])).sum(0)
    return [record.architecture for record, above in zip(records, better, strict=True) if above < number]


def _keep_only(directory: Path, rung: int, kept: set[Architecture]) -> None:
    wanted = {_branch(directory, architecture, rung) for architecture in kept}
    for path in (directory / "branches").glob(f"*-rung{rung}.safetensors"):
        if path not in wanted:
            path.unlink()


@dataclass(frozen=True)
class DistillationEvaluator:
    """Evaluates candidates by cutting and distilling students, in the context of a run."""

    context: RunContext

    def evaluate(self, architecture: Architecture, rung: int, advance: Advance) -> Evaluation:
        """Evaluate a candidate, see ``Evaluator``."""
        return evaluate_candidate(self.context, architecture, rung, advance, self.context.config.upper_bounds)

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """Remove the branches that no training will resume."""
        remove_unneeded_branches(self.context, rungs, candidates)


def evaluate_candidate(
    context: RunContext,
    architecture: Architecture,
    rung: int,
    advance: Advance,
    bounds: Bounds = MappingProxyType({}),
) -> Evaluation:
    """Evaluate a candidate at a rung.

    Rung 0 takes the loss straight after pruning, as does any rung for a candidate over a bound. A later rung
    starts from the same pruned weights and distils for the rung's tokens.

    Raises:
        CandidateError: the candidate failed, with the reason; the search continues without it.
    """
    try:
        return _evaluate(context, architecture, rung, advance, bounds)
    except CandidateError:
        raise
    except DivergenceError as error:
        raise CandidateError(f"diverged: {error}") from None
    except (RuntimeError, ValueError, MemoryError) as error:
        kind = "out of memory" if _out_of_memory(error) else type(error).__name__
        raise CandidateError(f"{kind}: {_first_line(error)}") from error
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _evaluate(
    context: RunContext, architecture: Architecture, rung: int, advance: Advance, bounds: Bounds
) -> Evaluation:
    student = context.extract(architecture)
    values, details = measured_costs(context, architecture, student)
    key = f"{architecture.label} rung {rung} {context.ranking.fingerprint}"
    if rung == 0 or excess_over(values, bounds):  # spend no training on a candidate over a bound
        values["loss"] = _finite(context.loss(student, advance if rung == 0 else lambda tokens: None))
        of_tasks = context.tasks.measure(student, key)
        return Evaluation(values | of_tasks[0], details=details | of_tasks[1])
    tokens, files = context.config.rung_tokens[rung - 1], rung_branch(context, architecture, rung)
    if reused_tokens := tokens_spared(context, files):
        details["branch_tokens"] = float(reused_tokens)
    try:
        outcome = context.train(
            student, tokens, context.targets, advance, RUNG_VALIDATIONS, checkpointing=files
        )
        values["loss"] = _finite(outcome.curve[-1][1])
        of_tasks = context.tasks.measure(student, key)
    except (RuntimeError, ValueError, MemoryError):
        _remove(files)  # the candidate failed; after an interruption they would be resumed
        raise
    _remove(files)
    values, details = values | of_tasks[0], details | of_tasks[1]
    return Evaluation(values, outcome.tokens, outcome.curve, outcome.seconds, details)


def measured_costs(
    context: RunContext, architecture: Architecture, student: PreTrainedModel
) -> tuple[dict[str, float], dict[str, float]]:
    """Return a student's objectives but for the loss, its latency if that is measured, and other figures."""
    values = dict(context.costs(architecture))
    if not context.config.measures_latency:
        return values, {}
    latency = context.latency(student)
    details = {"prefill_ms": latency.prefill_ms, "decode_ms_per_token": latency.decode_ms_per_token}
    return values | {"latency": latency.total_ms}, details


def _remove(files: Checkpointing | None) -> None:
    if files is not None:
        files.remove()


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise DivergenceError(f"the validation loss is {loss}")
    return loss


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "memory" in text


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else "no message"
