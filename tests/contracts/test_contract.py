"""The contract that every class has to keep, for every axis alone and for all together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, Scales, build
from space.counting.counting import parameter_polynomial
from space.cutting.extraction import extract, layers_kept, saved_tensors, sort_by_importance, student_config
from space.cutting.ranking import Ranking
from space.discovery.discovery import discover
from space.verification.contract import (
    TOLERANCE,
    contract_breach,
    distance,
    one_expert_at_a_time,
    sorting_is_exact,
)
from space.verification.masked import masked_teacher
from tests.contracts.draws import Cut, cuts, ranking_of, seeds
from tests.contracts.tiny import CASES, each, logits_of, verified

every_case = pytest.mark.parametrize("case", each(*CASES))


def few(examples: int) -> settings:
    """So many draws; a tiny teacher is found out about within the first."""
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow, database=None)


def on_trial(axis_map: AxisMap, axes: Collection[Axis]) -> AxisMap:
    """With nothing free but the given axes."""
    refused = dict.fromkeys(set(axis_map.free) - set(axes), "not on trial")
    return replace(axis_map, refused={**axis_map.refused, **refused})


def student_of(model: PreTrainedModel, axis_map: AxisMap, cut: Cut) -> PreTrainedModel:
    canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, cut.ranking)
    student = extract(canonical, axis_map, cut.ranking, cut.architecture, cut.layers)
    one_expert_at_a_time(student)
    return student


def apart(model: PreTrainedModel, axis_map: AxisMap, cut: Cut, ranking: Ranking | None = None) -> float:
    """How far a student's logits are from those of the masked teacher (by another ranking, if given)."""
    found = logits_of(student_of(model, axis_map, cut))
    with masked_teacher(model, axis_map, ranking or cut.ranking, cut.architecture, cut.layers) as oracle:
        return distance(found, logits_of(oracle))


@every_case
def test_logits_are_those_of_the_masked_teacher(case: str) -> None:
    model, axis_map = verified(case).model, verified(case).small

    @few(3)
    @given(cuts(axis_map, axis_map.free))
    def all_at_once(cut: Cut) -> None:
        assert apart(model, axis_map, cut) < TOLERANCE, cut

    all_at_once()
    for axis in axis_map.free:
        _alone(model, on_trial(axis_map, {axis}), axis)


def _alone(model: PreTrainedModel, axis_map: AxisMap, axis: Axis) -> None:
    @few(1)
    @given(cuts(axis_map, {axis}))
    def holds(cut: Cut) -> None:
        assert apart(model, axis_map, cut) < TOLERANCE, cut

    holds()


@every_case
def test_layers_may_be_a_block(case: str) -> None:
    model, axis_map = verified(case).model, verified(case).small
    assert Axis.LAYERS in axis_map.free

    @few(2)
    @given(cuts(axis_map, {Axis.LAYERS}, block=True))
    def holds(cut: Cut) -> None:
        assert apart(model, on_trial(axis_map, {Axis.LAYERS}), cut) < TOLERANCE, cut

    holds()


@every_case
def test_sorting_keeps_the_logits(case: str) -> None:
    model, axis_map = verified(case).model, verified(case).small

    @few(2)
    @given(seeds)
    def holds(seed: int) -> None:
        assert sorting_is_exact(model, axis_map, axis_map.sortable, seed)

    holds()


@every_case
def test_parameters_are_counted_as_the_built_model_has_them(case: str) -> None:
    axis_map = verified(case).small
    count = parameter_polynomial(axis_map)

    @few(5)
    @given(cuts(axis_map, axis_map.free))
    def holds(cut: Cut) -> None:
        kept = layers_kept(axis_map, cut.ranking, cut.architecture)
        try:
            model = build(student_config(axis_map, cut.architecture, kept))
        except ValueError:
            return
        assert count.of(cut.architecture) == sum(parameter.numel() for parameter in model.parameters()), cut

    holds()


@pytest.mark.parametrize("case", each("qwen3-mixed-layers-biases", "gpt_oss", "deepseek_v3"))
def test_many_are_counted_as_each_is(case: str) -> None:
    axis_map = verified(case).small
    count = parameter_polynomial(axis_map)

    @few(8)
    @given(st.lists(cuts(axis_map, axis_map.free), min_size=1, max_size=4))
    def holds(many: list[Cut]) -> None:
        sizes = {axis: np.array([cut.architecture[axis] for cut in many]) for axis in Axis}
        assert count.at(sizes).tolist() == [count.of(cut.architecture) for cut in many]

    holds()


class TestTheComparisonCanFail:
    """What is wrong in the map or in the ranking shows in the logits."""

    @pytest.mark.parametrize("axis", [axis for axis in Axis if axis is not Axis.HEAD_DIM])
    def test_other_units_give_other_logits(self, axis: Axis) -> None:
        mixture = axis in (Axis.EXPERTS, Axis.EXPERT_MLP, Axis.SHARED_MLP)
        name = "qwen2_moe" if mixture else "qwen3-mixed-layers-biases"
        model, axis_map = verified(name).model, on_trial(verified(name).small, {axis})
        right = ranking_of(axis_map, 0, 10**6)
        wrong = replace(right, scores={of: -scores for of, scores in right.scores.items()})
        half = _half(axis_map, axis)
        layers = layers_kept(axis_map, right, half)
        other = layers_kept(axis_map, wrong, half)
        cut = Cut(right, half, layers)
        assert apart(model, axis_map, cut) < TOLERANCE
        student = logits_of(student_of(model, axis_map, cut))
        with masked_teacher(model, axis_map, wrong, half, other) as oracle:
            assert distance(student, logits_of(oracle)) > 0.01

    @pytest.mark.parametrize("case", each("phi3", "gpt_neox", "bloom", "mixtral", "gpt_oss", "llama4_text"))
    def test_another_layout_gives_other_logits(self, case: str) -> None:
        """Of the layouts that fit the shapes, only the one that was found keeps the contract."""
        found = verified(case)
        small = found.small.config
        draft = discover(small, None, found.attention, found.tie)
        assert draft.open
        for spot, layouts in draft.open.items():
            for choice in set(range(len(layouts))) - {found.choices.get(spot, 0)}:
                wrong = discover(small, {**found.choices, spot: choice}, found.attention, found.tie).axis_map
                wrong = replace(wrong, scales=found.scales)
                wrong = replace(wrong, refused={**wrong.refused, **found.failures})
                trials = (contract_breach(found.model, wrong, wrong.free, seed) for seed in range(6))
                assert any(trials), f"{layouts[choice]} for {layouts[found.choices.get(spot, 0)]} at {spot}"

    @pytest.mark.parametrize(
        ("case", "scales", "axis"),
        [
            ("gemma2", {"embedding": 0.0}, Axis.HIDDEN),
            ("gemma2", {"norm_offset": 0.0}, Axis.HIDDEN),
            pytest.param("bloom", {"queries": {}}, Axis.HIDDEN, marks=pytest.mark.slow),
            pytest.param("minicpm3", {"rescaled": {}}, Axis.LAYERS, marks=pytest.mark.slow),
        ],
    )
    def test_another_scale_gives_other_logits(self, case: str, scales: dict[str, object], axis: Axis) -> None:
        found = verified(case)
        wrong: Scales = replace(found.scales, **scales)  # type: ignore[arg-type]
        assert wrong != found.scales
        trials = (
            contract_breach(found.model, replace(found.small, scales=wrong), {axis}, seed)
            for seed in range(4)
        )
        assert any(trials)


@pytest.mark.parametrize("case", each("llama4_text", "gpt_oss", "deepseek_v3", "nemotron_h", "gpt2"))
def test_every_tensor_is_seen_in_the_logits(case: str) -> None:
    """A trial says something of a tensor only where the tiny teacher's logits depend on it."""
    model, axis_map = verified(case).model, verified(case).small
    before = logits_of(model)
    for tensor in axis_map.tensors:
        values = saved_tensors(model, axis_map)[tensor.name]
        kept = values.detach().clone()
        with torch.no_grad():
            values += torch.randn(values.shape, generator=torch.Generator().manual_seed(0)) / 3
        assert distance(logits_of(model), before) > 100 * TOLERANCE, tensor.name
        with torch.no_grad():
            values.copy_(kept)


def _half(axis_map: AxisMap, axis: Axis) -> Architecture:
    teacher = axis_map.teacher
    sizes = {axis: teacher[axis] // 2}
    if axis is Axis.HEADS:
        sizes[axis] = teacher.kv_heads
    if axis is Axis.KV_HEADS:
        sizes[Axis.HEADS] = teacher.heads // 2
    return axis_map.complete(sizes)
