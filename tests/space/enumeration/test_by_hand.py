"""Architectures that are named in part: what follows of the rest, against brute force, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from space.axes.architecture import Architecture, Axis
from space.counting.budget import Budget
from space.enumeration.enumeration import enumerate_space
from space.enumeration.hand_made import completions, parse_architecture
from space.enumeration.limits import read_limits
from space.enumeration.search_space import SearchSpace
from space.input_error import InputError
from tests.space.maps import map_of

BUDGET = Budget(4_500_000_000, 0.02)
MAP = map_of("llama")
SPACE: SearchSpace = enumerate_space(MAP, BUDGET)


def meant(text: str) -> Architecture:
    return completions(parse_architecture(text), MAP, SPACE, {})[0]


def refusal(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        completions(parse_architecture(text), MAP, SPACE, {})
    return caught.value


def test_what_is_not_named_stays_the_teacher_s_and_the_solved_axis_follows() -> None:
    assert SPACE.solved is Axis.MLP
    found = meant("hidden=3072")
    assert found == replace(MAP.teacher, hidden=3072, mlp=found.mlp)
    others = (replace(found, mlp=found.mlp + step) for step in (-128, 128))
    off = abs(SPACE.parameters_of(found) - BUDGET.amount)
    assert all(abs(SPACE.parameters_of(other) - BUDGET.amount) >= off for other in others)


def test_the_published_shape_of_minitron_is_named_by_two_sizes() -> None:
    assert meant("hidden=3072,mlp=9216") == replace(MAP.teacher, hidden=3072, mlp=9216)


def test_sizes_off_the_grid_are_as_good_as_any() -> None:
    found = meant("layers=20,mlp=11000")
    assert (found.layers, found.mlp) == (20, 11000)
    assert found not in SPACE.architectures
    assert BUDGET.lowest <= SPACE.parameters_of(found) <= BUDGET.highest


@settings(max_examples=12, deadline=None)
@given(st.integers(0, len(SPACE) - 1), st.sets(st.sampled_from(sorted(MAP.free)), min_size=1))
def test_else_it_is_the_one_most_like_the_teacher(row: int, axes: set[Axis]) -> None:
    """Any sizes of a member have a completion; of those in the space none changes the others less."""
    named = {axis: SPACE.architectures[row][axis] for axis in axes}
    text = ",".join(f"{axis}={size}" for axis, size in named.items())
    first, *_ = found = completions(parse_architecture(text), MAP, SPACE, {})
    others = [axis for axis in MAP.free if axis not in axes]

    def change(one: Architecture) -> float:
        return sum(abs(math.log(one[axis] / MAP.teacher[axis])) for axis in others)

    members = [one for one in SPACE.architectures if all(one[axis] == size for axis, size in named.items())]
    assert all(one[axis] == size for one in found for axis, size in named.items())
    assert all(BUDGET.lowest <= SPACE.parameters_of(one) <= BUDGET.highest for one in found)
    kept = [axis for axis in others if axis is not SPACE.solved]
    if any(first[axis] != MAP.teacher[axis] for axis in kept):  # so the teacher's own sizes do not do
        assert change(first) <= min(map(change, members)) + 1e-9


def test_the_user_s_limits_hold_for_what_is_not_named() -> None:
    limits = read_limits(["kv_heads"], ["layers=24,28"])
    found = completions(parse_architecture("heads=24,mlp=14336"), MAP, SPACE, limits)
    assert {one.kv_heads for one in found} == {8}
    assert {one.layers for one in found} <= {24, 28, 32}


def test_sizes_that_come_to_too_much_say_how_much_and_what_would_do() -> None:
    error = refusal("hidden=4096,mlp=14336,layers=30")
    assert error.rule == "An architecture by hand has to lie within the budget's tolerance"
    assert error.values.startswith("--try hidden=4096,mlp=14336,layers=30 comes no nearer than 6,9")
    assert error.values.endswith("and 4,500,000,000 parameters ±2% was asked")
    remedy = error.remedy.removeprefix("Try ").partition(", or take ")[0]
    assert meant(remedy) in SPACE.architectures


@pytest.mark.parametrize(
    ("text", "rule", "values"),
    [
        ("hidden", "--try takes axes with one size each", "'hidden' holds 'hidden'"),
        ("hidden=3k", "--try takes axes with one size each", "'hidden=3k' holds 'hidden=3k'"),
        ("hidden=3072,", "--try takes axes with one size each", "'hidden=3072,' holds ''"),
        ("hidden=1,hidden=2", "--try takes each axis once", "'hidden=1,hidden=2' names hidden twice"),
        ("hiden=3072", "Axes are hidden, mlp", "'hiden' is none of them"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, rule: str, values: str) -> None:
    error = refusal(text)
    assert error.rule.startswith(rule)
    assert error.values == values


@pytest.mark.parametrize(
    ("text", "rule", "values"),
    [
        (
            "heads=33",
            "Sizes have to lie within the teacher's",
            "--try heads=33 names 33, and the teacher has 32",
        ),
        ("experts=4", "The axes of this teacher are", "--try experts=4 was given"),
        ("kv_heads=3", "The class LlamaConfig has to allow every size", "--try kv_heads=3 names 3"),
    ],
)
def test_what_the_teacher_or_its_class_does_not_have_is_refused(text: str, rule: str, values: str) -> None:
    error = refusal(text)
    assert error.rule.startswith(rule)
    assert error.values.startswith(values)


def test_a_mixture_of_experts() -> None:
    axis_map = map_of("qwen2_moe")
    space = enumerate_space(axis_map, Budget(8_000_000_000, 0.02))
    found = completions(parse_architecture("experts=30"), axis_map, space, {})[0]
    assert found.experts == 30
    assert space.budget.lowest <= space.parameters_of(found) <= space.budget.highest
