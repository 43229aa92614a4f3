"""Bounds and weights as a person types them."""

from __future__ import annotations

import math

import pytest

from search.runs.criteria import Criteria, figure_of, read_bound, read_weights
from search.settings.objectives import read_task_bounds
from space.input_error import InputError

TEACHER = {
    "loss": 2.0,
    "latency_ms": 40.0,
    "parameters": 1000,
    "memory_bytes": 4000,
    "objectives": {"flops": 10.0},
}
MODEL = {"loss": 3.0, "latency_ms": 10.0, "parameters": 500, "objectives": {"memory": 1000.0}}


def test_the_weighted_sum_is_of_shares_of_the_teachers_values() -> None:
    criteria = Criteria(weights=read_weights(["loss=1", "latency=0.5", "memory=2", "flops=0"]))
    assert criteria.score(MODEL, TEACHER) == 1 * 3 / 2 + 0.5 * 10 / 40 + 2 * 1000 / 4000


def test_what_was_not_measured_has_no_sum() -> None:
    assert Criteria(weights={"loss": 1.0, "flops": 1.0}).score(MODEL, TEACHER) is None
    assert Criteria(weights={"flops": 1.0}).score(TEACHER, MODEL) is None


def test_excess_is_in_the_objectives_units() -> None:
    bounds = {"latency": read_bound("latency", "0.008s"), "parameters": read_bound("parameters", "1k")}
    assert bounds == {"latency": 8.0, "parameters": 1000.0}
    assert Criteria(bounds).excess(MODEL) == {"latency": 2.0}
    assert Criteria({"flops": 1.0}).excess(MODEL) == {"flops": math.inf}
    assert Criteria({"latency": 10.0}).within(MODEL), "the bound itself is allowed"
    assert figure_of(MODEL, "memory") == 1000.0


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["los=1"], "--weights names 'los'"),
        (["loss=-1"], "--weights loss=-1 was given"),
        (["loss=nan"], "--weights loss=nan was given"),
        (["loss=inf"], "--weights loss=inf was given"),
        (["loss"], "--weights loss was given"),
        (["loss=1", "loss=2"], "two of loss were given"),
        (["loss=0", "latency=0"], "all of loss=0 latency=0 are 0"),
    ],
    ids=["unknown", "negative", "not a number", "infinite", "nothing", "twice", "all nought"],
)
def test_weights_that_cannot_be(texts: list[str], value: str) -> None:
    with pytest.raises(InputError) as caught:
        read_weights(texts)
    assert caught.value.values == value


def test_a_bound_that_cannot_be_is_told_as_it_was_typed() -> None:
    with pytest.raises(InputError) as caught:
        read_bound("memory", "8ms")
    assert caught.value.values == "--max-memory 8ms was given"
    assert caught.value.remedy == "Write --max-memory 8GB or 500MiB"


def _scored(value: float, higher: bool = True) -> dict[str, object]:
    return {**MODEL, "benchmarks": {"quiz": {"value": value, "higher_is_better": higher}}}


def test_the_least_score_on_a_task_is_a_bound() -> None:
    criteria = Criteria(least=read_task_bounds(["quiz=0.7"], "--min", ["quiz"]))
    assert criteria.within(_scored(0.7))
    assert criteria.excess(_scored(0.6)) == {"quiz": pytest.approx(0.1)}
    assert criteria.excess(MODEL) == {"quiz": math.inf}, "a model without a score is not known to reach it"
    assert criteria.words == "quiz ≥ 0.7"
    most = Criteria(read_task_bounds(["quiz=20"], "--max", ["quiz"]), least={"riddle": 0.5})
    assert most.words == "quiz ≤ 20, riddle ≥ 0.5"
    assert Criteria({"quiz": 20.0}).excess(_scored(22.0, higher=False)) == {"quiz": 2.0}


def test_more_of_a_score_weighs_less() -> None:
    criteria = Criteria(weights=read_weights(["loss=1", "quiz=2"], ["quiz"]))
    teacher = {**TEACHER, **_scored(0.8), "loss": 2.0}
    assert criteria.score(_scored(0.6), teacher) == pytest.approx(3 / 2 + 2 * 0.8 / 0.6)
    assert criteria.score(_scored(0.0), teacher) is None, "nothing right is no share"
    less = {**TEACHER, **_scored(10.0, higher=False), "loss": 2.0}
    assert criteria.score(_scored(20.0, higher=False), less) == pytest.approx(3 / 2 + 2 * 2)


def test_a_task_named_as_an_objective_is_is_no_score_of_its_margin() -> None:
    assert figure_of({**MODEL, "objectives": {"quiz": -3.0}}, "quiz") is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["quizz=1"], "Did you mean 'quiz'"),
        (["x=1"], "--min bounds scores on the tasks of the run: quiz; --min x=1 was given"),
        (["quiz"], "Write --min quiz=0.7"),
        (["quiz=nan"], "A bound on a task is a number"),
        (["quiz=1", "quiz=2"], "two of quiz were given"),
    ],
)
def test_what_is_no_bound_on_a_task_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_task_bounds(texts, "--min", ["quiz"])
    assert message in str(caught.value)


def test_a_run_without_tasks_says_how_to_have_some() -> None:
    with pytest.raises(InputError, match="it has none; --min quiz=1 was given"):
        read_task_bounds(["quiz=1"], "--min", [])
