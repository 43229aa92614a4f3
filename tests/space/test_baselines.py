from __future__ import annotations

import math

import pytest

from space.architecture import Architecture, Axis
from space.axis_map import discover
from space.baselines import DEPTH, MLP_AND_HEADS, UNIFORM, baselines
from space.budget import Budget
from space.search_space import SearchSpace, enumerate_space
from studies.demo.train import CONFIG

MAP = discover(CONFIG)
TEACHER = MAP.teacher


def space_at(parameters: int) -> SearchSpace:
    return enumerate_space(MAP, Budget(parameters, 0.02))


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return space_at(1_000_000)


@pytest.fixture(scope="module")
def found(space: SearchSpace) -> dict[str, Architecture]:
    return baselines(space, TEACHER)


def unevenness(architecture: Architecture, *axes: Axis) -> float:
    """The ratio of the largest share that is left to the smallest: 1 if all shrink alike."""
    shares = [architecture[axis] / TEACHER[axis] for axis in axes]
    return max(shares) / min(shares)


def test_each_is_a_member_of_the_space(space: SearchSpace, found: dict[str, Architecture]) -> None:
    assert list(found) == [UNIFORM, MLP_AND_HEADS, DEPTH] == ["uniform", "mlp-heads", "depth"]
    assert set(found.values()) <= set(space.architectures)
    assert len(set(found.values())) == 3


def test_uniform_shrinks_all_widths_alike(space: SearchSpace, found: dict[str, Architecture]) -> None:
    widths = (Axis.HIDDEN, Axis.MLP, Axis.HEADS)
    assert found[UNIFORM].layers == TEACHER.layers
    rivals = [a for a in space.architectures if a.layers == TEACHER.layers]
    most_even = min(unevenness(a, *widths) for a in rivals)
    assert math.isclose(unevenness(found[UNIFORM], *widths), most_even)


def test_mlp_and_heads_keeps_hidden_and_layers(space: SearchSpace, found: dict[str, Architecture]) -> None:
    inside = found[MLP_AND_HEADS]
    assert (inside.hidden, inside.layers) == (TEACHER.hidden, TEACHER.layers)
    rivals = [a for a in space.architectures if (a.hidden, a.layers) == (TEACHER.hidden, TEACHER.layers)]
    most_even = min(unevenness(a, Axis.MLP, Axis.HEADS) for a in rivals)
    assert math.isclose(unevenness(inside, Axis.MLP, Axis.HEADS), most_even)


def test_depth_keeps_the_widths(space: SearchSpace, found: dict[str, Architecture]) -> None:
    def widths(architecture: Architecture) -> tuple[int, ...]:
        return architecture.hidden, architecture.heads, architecture.kv_heads

    shallow = found[DEPTH]
    assert widths(shallow) == widths(TEACHER)
    assert shallow.layers < TEACHER.layers
    rivals = [
        a.mlp for a in space.architectures if widths(a) == widths(TEACHER) and a.layers < TEACHER.layers
    ]
    assert shallow.mlp == max(rivals)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [(600_000, {UNIFORM, DEPTH}), (1_000_000, {UNIFORM, MLP_AND_HEADS, DEPTH})],
)
def test_one_that_the_space_does_not_hold_is_left_out(parameters: int, names: set[str]) -> None:
    """At a third of the teacher, MLP and heads alone cannot carry the cut."""
    assert baselines(space_at(parameters), TEACHER).keys() == names


def test_a_space_may_hold_none() -> None:
    narrow = Architecture(64, 64, 4, 2, 4)
    assert baselines(SearchSpace(Budget(1, 0.1), (narrow,), (1,)), TEACHER) == {}
