"""Bounds and weights as a person types them."""

from __future__ import annotations

import math

import pytest

from search.runs.criteria import Criteria, figure_of, read_bound, read_weights
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
