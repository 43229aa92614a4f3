"""One candidate at one rung: pruned, measured, distilled if the rung says so."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from evaluators.distillation.loop import Checkpointing, DivergenceError
from evaluators.distillation.training import Advance
from search.rungs.evaluation import CandidateError, Evaluation
from search.rungs.rung import Rung
from search.settings.bounds import Bounds, over
from search.stages.branches import of_rung, spared, tidy
from search.stages.workbench import Workbench
from space.axes.architecture import Architecture

#: Of a short distillation: half way, and at its end.
VALIDATIONS = 2


@dataclass(frozen=True)
class BenchEvaluator:
    """Judges candidates by models, on the workbench of a run."""

    bench: Workbench

    def evaluate(self, architecture: Architecture, rung: int, advance: Advance) -> Evaluation:
        """See ``Evaluator``."""
        return evaluate(self.bench, architecture, rung, advance, self.bench.config.most)

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """Remove the branches that nobody goes on from."""
        tidy(self.bench, rungs, candidates)


def evaluate(
    bench: Workbench,
    architecture: Architecture,
    rung: int,
    advance: Advance,
    bounds: Bounds = MappingProxyType({}),
) -> Evaluation:
    """Score a candidate.

    Rung 0 is the loss straight after pruning, and so is a later one of a candidate that is over a bound; else
    a later rung begins from the same pruned weights and distils for the rung's tokens.

    Raises:
        CandidateError: with the reason. The search goes on without it.
    """
    try:
        return _evaluate(bench, architecture, rung, advance, bounds)
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
    bench: Workbench, architecture: Architecture, rung: int, advance: Advance, bounds: Bounds
) -> Evaluation:
    student = bench.extract(architecture)
    values, details = dict(bench.costs(architecture)), {}
    if bench.config.measures_latency:
        latency = bench.latency(student)
        values["latency"] = latency.total_ms
        details = {"prefill_ms": latency.prefill_ms, "decode_ms_per_token": latency.decode_ms_per_token}
    if rung == 0 or over(values, bounds):  # nothing is spent on what goes no further
        values["loss"] = _finite(bench.loss(student))
        return Evaluation(values, details=details)
    tokens, files = bench.config.rung_tokens[rung - 1], of_rung(bench, architecture, rung)
    if known := spared(bench, files):
        details["branch_tokens"] = float(known)
    try:
        outcome = bench.train(student, tokens, bench.targets, advance, VALIDATIONS, checkpointing=files)
    except (RuntimeError, ValueError, MemoryError):
        _remove(files)  # it is over for this candidate; one that was stopped goes on from them
        raise
    _remove(files)
    values["loss"] = _finite(outcome.curve[-1][1])
    return Evaluation(values, outcome.tokens, outcome.curve, outcome.seconds, details)


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
