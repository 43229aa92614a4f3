from __future__ import annotations

import math
from dataclasses import replace

import pytest

from space.axes.architecture import Architecture, Axis
from space.counting.budget import Budget
from space.enumeration.enumeration import enumerate_space
from space.enumeration.hand_made import DEPTH, MLP_AND_HEADS, UNIFORM, baselines
from space.enumeration.limits import read_limits
from space.enumeration.search_space import SearchSpace
from space.verification.verification import verified_axis_map
from studies.demo.train import CONFIG
from tests.space.maps import map_of

MAP = verified_axis_map(CONFIG)
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
    whole = space_at(1_000_000)
    few = (whole.column(Axis.LAYERS) < TEACHER.layers) & (whole.column(Axis.HIDDEN) < TEACHER.hidden)
    assert few.any()
    assert baselines(replace(whole, table=whole.table[few]), TEACHER) == {}


def test_experts_shrink_with_the_other_widths() -> None:
    """Mixtral to 20B: the even answer has fewer experts, the one by hand all of them."""
    axis_map = map_of("mixtral")
    space = enumerate_space(axis_map, Budget(20 * 10**9, 0.02))
    found, teacher = baselines(space, axis_map.teacher), axis_map.teacher
    assert list(found) == [UNIFORM, MLP_AND_HEADS, DEPTH]
    even, inside, shallow = found.values()
    assert even.experts < teacher.experts
    assert even.layers == inside.layers == teacher.layers
    assert (inside.hidden, inside.experts) == (teacher.hidden, teacher.experts)
    assert inside.expert_mlp < teacher.expert_mlp
    assert inside.heads < teacher.heads
    assert (shallow.hidden, shallow.heads, shallow.experts) == (4096, 32, 8)


def test_what_two_would_answer_alike_is_named_once() -> None:
    """With hidden kept, to shrink all widths is to shrink MLP and heads."""
    space = enumerate_space(MAP, Budget(1_000_000, 0.02), read_limits(["hidden"], []))
    assert list(baselines(space, TEACHER)) == [UNIFORM, DEPTH]
