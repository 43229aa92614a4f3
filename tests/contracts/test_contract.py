"""The contract that every family has to keep, for every axis alone and for all together."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from space.architecture import Architecture, Axis
from space.axis_map import build
from space.counting import parameter_polynomial
from space.extraction import extract, sort_by_importance, student_config
from space.families import FAMILIES
from space.ranking import Ranking
from space.search_space import _allowed
from tests.contracts.draws import allowed, architectures, axis_map_of, random_ranking, seeds
from tests.contracts.masked import masked_teacher
from tests.contracts.tiny import TINY, logits_of, random_teacher

CASES = [(family, name) for family in FAMILIES for name in TINY.get(family, {})]
every_case = pytest.mark.parametrize(("family", "name"), CASES, ids=["-".join(case) for case in CASES])
CUTS = {axis.value: {axis} for axis in Axis} | {"all": set(Axis)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_tiny_config(family: str) -> None:
    assert family in TINY, f"give {family} a tiny config in tests/contracts/tiny.py"
    assert {config.model_type for config in TINY[family].values()} == {family}
    assert {bool(config.tie_word_embeddings) for config in TINY[family].values()} == {False, True}


@cache
def teacher_of(family: str, name: str) -> PreTrainedModel:
    return random_teacher(TINY[family][name])


def student_of(family: str, name: str, ranking: Ranking, architecture: Architecture) -> PreTrainedModel:
    weights, axis_map = dict(teacher_of(family, name).named_parameters()), axis_map_of(family, name)
    return extract(sort_by_importance(weights, axis_map, ranking), axis_map, ranking, architecture)


@every_case
@pytest.mark.parametrize("cut", CUTS)
def test_logits_are_those_of_the_masked_teacher(cut: str, family: str, name: str) -> None:
    axis_map, teacher = axis_map_of(family, name), teacher_of(family, name)

    @settings(max_examples=20 if cut == "all" else 8, deadline=None)
    @given(architectures(family, name, CUTS[cut]), seeds)
    def holds(architecture: Architecture, seed: int) -> None:
        ranking = random_ranking(axis_map.teacher, seed)
        masked = masked_teacher(teacher, axis_map.head_dim, ranking, architecture)
        student = student_of(family, name, ranking, architecture)
        torch.testing.assert_close(logits_of(student), logits_of(masked), rtol=1e-4, atol=1e-4)

    holds()


@pytest.mark.parametrize("cut", CUTS)
def test_other_units_give_other_logits(cut: str) -> None:
    """The comparison can fail: with the ranking upside down, each axis is cut wrongly."""
    case = ("qwen3", "mixed-layers-biases")
    axis_map = axis_map_of(*case)
    whole = axis_map.teacher
    halves = Architecture(whole.hidden // 2, whole.mlp // 2, whole.heads // 2, whole.kv_heads // 2, 2)
    cut_axes = CUTS[cut] | ({Axis.HEADS} if cut == Axis.KV_HEADS else set())
    half = Architecture(**whole.sizes() | {axis.value: halves[axis] for axis in cut_axes})
    right = random_ranking(whole, 0)
    wrong = Ranking(-right.hidden, -right.mlp, -right.heads, -right.layers, whole.kv_heads, "", "")
    masked = masked_teacher(teacher_of(*case), axis_map.head_dim, wrong, half)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(
            logits_of(student_of(*case, right, half)), logits_of(masked), rtol=0.1, atol=0.1
        )


@every_case
def test_sorting_keeps_the_logits(family: str, name: str) -> None:
    axis_map, teacher = axis_map_of(family, name), teacher_of(family, name)
    before = dict(teacher.named_parameters())

    @settings(max_examples=10, deadline=None)
    @given(seeds)
    def holds(seed: int) -> None:
        canonical = sort_by_importance(before, axis_map, random_ranking(axis_map.teacher, seed))
        assert canonical.keys() == before.keys()
        other = copy.deepcopy(teacher)
        other.load_state_dict(canonical, strict=False)
        torch.testing.assert_close(logits_of(other), logits_of(teacher), rtol=1e-4, atol=1e-4)

    holds()


@every_case
def test_parameters_are_counted_as_the_built_model_has_them(family: str, name: str) -> None:
    axis_map = axis_map_of(family, name)
    count = parameter_polynomial(axis_map)

    @settings(max_examples=15, deadline=None)
    @given(architectures(family, name, set(Axis)))
    def holds(architecture: Architecture) -> None:
        model = build(student_config(axis_map, architecture, list(range(architecture.layers))))
        assert count.of(architecture) == sum(parameter.numel() for parameter in model.parameters())

    holds()


@every_case
def test_many_are_counted_as_each_is(family: str, name: str) -> None:
    count = parameter_polynomial(axis_map_of(family, name))

    @settings(max_examples=15, deadline=None)
    @given(st.lists(architectures(family, name, set(Axis)), min_size=1))
    def holds(many: list[Architecture]) -> None:
        sizes = {axis: np.array([architecture[axis] for architecture in many]) for axis in Axis}
        assert count.at(sizes).tolist() == [count.of(architecture) for architecture in many]

    holds()


@every_case
def test_the_space_allows_what_the_class_allows(family: str, name: str) -> None:
    axis_map = axis_map_of(family, name)
    teacher = axis_map.teacher
    accepted = [
        (hidden, each * kv_heads, kv_heads)
        for hidden in range(1, teacher.hidden + 1)
        for kv_heads in range(1, teacher.kv_heads + 1)
        for each in range(1, teacher.heads // teacher.kv_heads + 1)
        if _allowed(axis_map, hidden, each * kv_heads, kv_heads)
    ]
    assert accepted == allowed(family, name)
