"""A candidate's own faults are recorded; anything else ends the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from evaluators.distillation.loop import DistillationResult, DivergenceError
from evaluators.metrics.latency import Latency
from search.rungs.evaluation import CandidateError
from search.stages.run_context import RunContext
from search.stages.task_scores import NO_TASKS
from search.stages.trial import evaluate_candidate
from tests.search.synthetic import demo_space, run_config

ARCHITECTURE = demo_space().architectures[0]
COSTS = {"parameters": 9.0, "memory": 8.0, "flops": 7.0}


def context(**parts: Any) -> RunContext:
    """A context on which a candidate passes, but for the parts that are given."""
    curve = [(1000, 2.5), (2000, 2.25)]
    whole = {
        "config": run_config(),
        "extract": lambda architecture: "a student",
        "costs": lambda architecture: COSTS,
        "latency": lambda student: Latency(prefill_ms=4.0, decode_ms_per_token=0.5, answer=32),
        "loss": lambda student, advance: 3.5,
        "train": lambda student, tokens, *_, **__: DistillationResult(tokens, curve, 1.5),
        "targets": None,
        "tasks": NO_TASKS,
        "ranking": SimpleNamespace(fingerprint="a ranking"),
    }
    return cast(RunContext, SimpleNamespace(**whole | parts))


def score(one: RunContext, rung: int) -> Any:
    return evaluate_candidate(one, ARCHITECTURE, rung, lambda tokens: None)


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


def test_rung_0_is_the_loss_straight_after_pruning() -> None:
    found = score(context(train=raising(AssertionError("nothing is trained"))), 0)
    assert found.values == {**COSTS, "latency": 4.0 + 32 * 0.5, "loss": 3.5}
    assert (found.tokens, found.curve, found.seconds) == (0, [], 0.0)
    assert found.details == {"prefill_ms": 4.0, "decode_ms_per_token": 0.5}


def test_a_later_rung_is_the_last_loss_of_its_distillation() -> None:
    found = score(context(loss=raising(AssertionError("the curve has it"))), 2)
    assert found.values["loss"] == 2.25
    assert (found.tokens, found.seconds) == (2000, 1.5), "the tokens of rung 2"
    assert found.curve == [(1000, 2.5), (2000, 2.25)]


@pytest.mark.parametrize("rung", [0, 2])
def test_tasks_are_scored_at_every_rung_under_a_key_of_its_own(rung: int) -> None:
    keys = []

    def measure(student: Any, key: str) -> tuple[dict[str, float], dict[str, float]]:
        keys.append(key)
        return {"quiz": -1.5}, {"quiz:accuracy": 0.75}

    found = score(context(tasks=SimpleNamespace(measure=measure)), rung)
    assert (found.values["quiz"], found.details["quiz:accuracy"]) == (-1.5, 0.75)
    assert keys == [f"{ARCHITECTURE.label} rung {rung} a ranking"]


def test_a_task_that_fails_is_the_candidate_s_fault() -> None:
    tasks = SimpleNamespace(measure=raising(CandidateError("the score on quiz is nan")))
    with pytest.raises(CandidateError, match="the score on quiz is nan"):
        score(context(tasks=tasks), 1)


def test_latency_is_measured_only_if_it_is_an_objective() -> None:
    one = context(config=run_config(objectives=("loss",)), latency=raising(AssertionError("not asked")))
    assert "latency" not in score(one, 0).values


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DivergenceError("the loss is nan at step 3"), "diverged: the loss is nan at step 3"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory: CUDA out of memory."),
        (MemoryError(), "out of memory: no message"),
        (RuntimeError("shapes do not match\nmore"), "RuntimeError: shapes do not match"),
        (ValueError("a bad architecture"), "ValueError: a bad architecture"),
    ],
)
@pytest.mark.parametrize("part", ["extract", "train"])
def test_a_candidate_s_fault_has_a_reason(part: str, error: Exception, reason: str) -> None:
    with pytest.raises(CandidateError) as caught:
        score(context(**{part: raising(error)}), 1)
    assert str(caught.value) == reason


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("rung", [0, 1])
def test_a_loss_that_is_no_number_is_a_failure(rung: int, loss: float) -> None:
    outcome = DistillationResult(1000, [(1000, loss)], 1.0)
    one = context(loss=lambda student, advance: loss, train=lambda *_, **__: outcome)
    with pytest.raises(CandidateError, match=rf"^diverged: the validation loss is {loss}$"):
        score(one, rung)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), AssertionError("an invariant"), KeyboardInterrupt()]
)
def test_anything_else_ends_the_run(error: BaseException) -> None:
    with pytest.raises(type(error)):
        score(context(extract=raising(error)), 0)
