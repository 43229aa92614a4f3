from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, PretrainedConfig

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import build
from space.counting.budget import Budget, BudgetText
from space.counting.counting import parameter_polynomial
from space.cutting.extraction import student_config
from space.cutting.ranking import kept_layers
from space.enumeration.choices import preferred_multiple, step_of
from space.enumeration.enumeration import enumerate_space, smallest_sizes
from space.enumeration.hand_made import baselines
from space.enumeration.search_space import SearchSpace
from space.input_error import InputError
from space.verification.verification import verified_axis_map
from tests.contracts.tiny import each
from tests.space.maps import map_of, tiny_map

MAP = map_of("small")
COUNT = parameter_polynomial(MAP)
WHOLE = 18_984
_TINY: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 40,
    "intermediate_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


@cache
def space_of(name: str, budget: int) -> SearchSpace:
    return enumerate_space(map_of(name), Budget(budget, 0.02))


def count_by_hand(a: Architecture) -> int:
    """Of a Llama with an untied vocabulary of 50 and heads of 8."""
    attention = 2 * a.hidden * a.heads * 8 + 2 * a.hidden * a.kv_heads * 8
    return 2 * 50 * a.hidden + a.layers * (attention + 3 * a.hidden * a.mlp + 2 * a.hidden) + a.hidden


def grid_by_hand(share: float) -> list[list[Architecture]]:
    """For each choice of the free sizes of ``SMALL``, every MLP size; written down, not derived."""
    least = min(0.5, 0.8 * share)
    rows = []
    for hidden, (kv_heads, heads), layers in itertools.product(
        [4, 8, 12, 16, 20, 24], [(1, 1), (1, 2), (2, 2), (2, 4)], [1, 2, 3]
    ):
        shares = [hidden / 24, heads / 4, kv_heads / 2, layers / 3]
        if hidden % heads == 0 and all(share >= least - 1e-12 for share in shares):
            mlps = [mlp for mlp in range(4, 45, 4) if mlp / 44 >= least / 2 - 1e-12]
            rows.append([Architecture(hidden, mlp, heads, kv_heads, layers) for mlp in mlps])
    return rows


@pytest.mark.parametrize("tolerance", [0.002, 0.02, 0.1])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.88])
def test_a_slow_enumeration_finds_the_same(share: float, tolerance: float) -> None:
    budget = Budget(round(share * WHOLE), tolerance)

    def distance(architecture: Architecture) -> int:
        return abs(count_by_hand(architecture) - budget.amount)

    nearest = [min(row, key=distance) for row in grid_by_hand(budget.amount / WHOLE)]
    expected = [a for a in nearest if budget.lowest <= count_by_hand(a) <= budget.highest]
    if not expected:
        with pytest.raises(InputError, match="At least one architecture"):
            enumerate_space(MAP, budget)
        return
    space = enumerate_space(MAP, budget)
    assert set(space.architectures) == set(expected)
    assert list(space.parameters) == [count_by_hand(a) for a in space.architectures]


@settings(max_examples=100, deadline=None)
@given(st.floats(0.001, 0.99), st.sampled_from([1e-5, 1e-3, 0.02, 0.2, 0.49]))
def test_a_budget_is_met_or_those_named_instead_are(share: float, tolerance: float) -> None:
    budget = Budget(round(share * WHOLE), tolerance)
    try:
        space = enumerate_space(MAP, budget)
    except InputError as refusal:
        for instead in named_instead(refusal, tolerance):
            assert enumerate_space(MAP, instead).architectures
        return
    assert len(np.unique(space.free_table, axis=0)) == len(set(space.architectures)) == len(space)
    assert all(budget.lowest <= n <= budget.highest for n in space.parameters)
    assert all(n < WHOLE for n in space.parameters)


def named_instead(refusal: InputError, tolerance: float) -> list[Budget]:
    """The budgets that a refusal proposes, as its reader would type them."""
    if "has to lie below" in refusal.rule:
        most = re.search(r"up to (\S+)\)", refusal.remedy)
        assert most
        parameters = BudgetText.parse(most[1]).of(WHOLE)
        assert parameters * (1 + tolerance) < WHOLE
        return []
    nearest = re.findall(r"\d+", refusal.values.rpartition("the nearest are ")[2])
    assert 1 <= len(nearest) <= 2
    return [Budget(BudgetText.parse(text).of(WHOLE), tolerance) for text in nearest]


class TestSpaces:
    @pytest.mark.parametrize(
        ("name", "budget"), [("llama", 4 * 10**9), ("llama", 10**9), ("qwen3", 4 * 10**9)]
    )
    def test_the_mlp_is_the_best_multiple(self, name: str, budget: int) -> None:
        axis_map, space = map_of(name), space_of(name, budget)
        count, teacher = parameter_polynomial(axis_map), axis_map.teacher
        least = smallest_sizes(teacher, budget / count.of(teacher))[Axis.MLP]
        for architecture, parameters in zip(space.architectures, space.parameters, strict=True):
            assert architecture.mlp % 128 == 0
            for mlp in (architecture.mlp - 128, architecture.mlp + 128):
                if least <= mlp <= teacher.mlp:
                    other = count.of(replace(architecture, mlp=mlp))
                    assert abs(other - budget) >= abs(parameters - budget)

    @pytest.mark.parametrize(("name", "budget"), [("llama", 10**9), ("qwen3", 10**9)])
    def test_sizes_lie_within_their_limits(self, name: str, budget: int) -> None:
        teacher, space = map_of(name).teacher, space_of(name, budget)
        least = smallest_sizes(teacher, budget / parameter_polynomial(map_of(name)).of(teacher))
        for axis in map_of(name).free:
            assert least[axis] <= min(space.values(axis)) <= max(space.values(axis)) <= teacher[axis]
        for a in space.architectures:
            assert a.hidden % 128 == 0
            assert a.heads % a.kv_heads == 0
            assert a.heads // a.kv_heads <= teacher.heads // teacher.kv_heads
            assert teacher.kv_heads % a.kv_heads == 0

    def test_a_class_s_own_rules_are_kept(self) -> None:
        """Llama wants hidden to be a multiple of the heads, Qwen3 does not."""
        assert all(a.hidden % a.heads == 0 for a in space_of("llama", 10**9).architectures)
        assert any(a.hidden % a.heads for a in space_of("qwen3", 10**9).architectures)

    @pytest.mark.parametrize(
        "published",
        [Architecture(3072, 9216, 32, 8, 32), Architecture(4096, 14336, 32, 8, 16)],
        ids=["Llama-3.1-Minitron-4B-Width", "Llama-3.1-Minitron-4B-Depth"],
    )
    def test_published_students_are_found(self, published: Architecture) -> None:
        parameters = parameter_polynomial(map_of("llama")).of(published)
        space = enumerate_space(map_of("llama"), Budget(parameters, 0.001))
        assert space.parameters_of(published) == parameters

    @pytest.mark.parametrize("model_type", each("llama", "gpt2", "falcon", "gemma2", "mixtral", "qwen2_moe"))
    def test_every_student_can_be_built_and_has_the_parameters(self, model_type: str) -> None:
        axis_map = tiny_map(model_type)
        whole = parameter_polynomial(axis_map).of(axis_map.teacher)
        space = enumerate_space(axis_map, Budget(round(0.6 * whole), 0.08))
        scores = torch.rand(axis_map.teacher.layers, generator=torch.Generator().manual_seed(0))
        for architecture in random.Random(0).sample(space.architectures, min(5, len(space))):
            kept = kept_layers(scores, architecture.layers, axis_map.kinds)
            model = build(student_config(axis_map, architecture, kept))
            assert space.parameters_of(architecture) == model.num_parameters()

    def test_the_order_is_fixed(self) -> None:
        again = enumerate_space(map_of("llama"), Budget(4 * 10**9, 0.02))
        assert np.array_equal(again.table, space_of("llama", 4 * 10**9).table)

    def test_the_free_axes_are_those_of_the_teacher_but_for_the_one_that_is_solved(self) -> None:
        dense, mixture = space_of("llama", 4 * 10**9), space_of("mixtral", 20 * 10**9)
        assert dense.solved is Axis.MLP
        assert dense.free_axes == (Axis.HIDDEN, Axis.HEADS, Axis.KV_HEADS, Axis.LAYERS)
        assert mixture.solved is Axis.EXPERT_MLP
        assert mixture.free_axes == (*dense.free_axes, Axis.EXPERTS)


@pytest.mark.parametrize(
    ("size", "step"),
    [(14336, 128), (2048, 128), (2047, 64), (1024, 64), (512, 32), (256, 16), (128, 8), (127, 4), (24, 4)],
)
def test_large_sizes_are_multiples_of_more(size: int, step: int) -> None:
    assert preferred_multiple(size) == step


def test_rows_of_mixtures_fit_grouped_products() -> None:
    """Their kernels want 16 bytes, which is eight numbers of bfloat16, however small the teacher."""
    small = tiny_map("mixtral")
    assert [step_of(axis, small) for axis in (Axis.HIDDEN, Axis.EXPERT_MLP)] == [8, 8]
    assert step_of(Axis.HIDDEN, tiny_map("llama")) == 4


def test_no_axis_carries_the_whole_cut() -> None:
    teacher = Architecture(hidden=4096, mlp=14336, heads=32, kv_heads=8, layers=32)
    half = {Axis.HIDDEN: 2048, Axis.MLP: 3584, Axis.HEADS: 16, Axis.KV_HEADS: 4, Axis.LAYERS: 16}
    fifth = {Axis.HIDDEN: 656, Axis.MLP: 1147, Axis.HEADS: 6, Axis.KV_HEADS: 2, Axis.LAYERS: 6}
    for share, expected in ((0.9, half), (0.2, fifth), (0.0, dict.fromkeys(half, 1))):
        assert {
            axis: size for axis, size in smallest_sizes(teacher, share).items() if axis in half
        } == expected


class TestRefusals:
    RULE = "The budget, tolerance included, has to lie below the teacher's size"

    @pytest.mark.parametrize(
        ("budget", "asked", "most"),
        [
            (Budget(WHOLE, 0.02), "18,984 parameters ±2%", "16.8k"),
            (Budget(18_700, 0.02), "18,700 parameters ±2%", "16.8k"),
            (Budget(10**9, 0.004), "1,000,000,000 parameters ±0.4%", "17k"),
            (Budget(15_000, 0.3), "15,000 parameters ±30%", "13.1k"),
        ],
    )
    def test_a_budget_at_or_above_the_teacher(self, budget: Budget, asked: str, most: str) -> None:
        with pytest.raises(InputError) as refusal:
            enumerate_space(MAP, budget)
        assert str(refusal.value) == (
            f"{self.RULE}; {asked} was asked of a teacher of 18,984 parameters. "
            f"Ask for less (up to {most}), or name a larger teacher with --model."
        )
        assert Budget(BudgetText.parse(most).of(WHOLE), budget.tolerance).highest < WHOLE

    @pytest.mark.parametrize("share", [0.45, 0.6, 0.7, 0.95])
    def test_a_budget_with_nothing_near_it_names_the_nearest(self, share: float) -> None:
        budget = Budget(round(share * WHOLE) + 1, 1e-5)
        counts = {count_by_hand(a) for row in grid_by_hand(budget.amount / WHOLE) for a in row}
        below = max(n for n in counts if n < budget.amount)
        above = min(n for n in counts if n > budget.amount)
        with pytest.raises(InputError) as refusal:
            enumerate_space(MAP, budget)
        assert str(refusal.value) == (
            "At least one architecture has to lie within the budget's tolerance; none lies within "
            f"{budget.amount:,} parameters ±0.001% for a teacher of 18,984; the nearest are "
            f"{below} and {above}. Take one of these as --budget, widen --tolerance, or name a teacher "
            "nearer in size with --model."
        )

    @pytest.mark.parametrize("parameters", [0, 1, 100])
    def test_a_budget_below_the_smallest_architecture_names_the_smallest(self, parameters: int) -> None:
        smallest = count_by_hand(Architecture(4, 4, 1, 1, 1))
        with pytest.raises(InputError, match=f"the nearest are {smallest}. Take one of these"):
            enumerate_space(MAP, Budget(parameters, 0.02))

    def test_one_that_would_break_its_own_limits_is_not_named(self) -> None:
        """Limits rise with the budget: 6,972 is nearer, but no architecture of that size is within them."""
        axis_map = verified_axis_map(LlamaConfig(**_TINY))
        with pytest.raises(InputError, match="the nearest are 6920 and 6984"):
            enumerate_space(axis_map, Budget(6926, 1e-6))
        assert set(enumerate_space(axis_map, Budget(6984, 1e-6)).parameters) == {6984}
        with pytest.raises(InputError, match="At least one architecture"):
            enumerate_space(axis_map, Budget(6972, 1e-6))

    def test_the_teacher_itself_is_not_named(self) -> None:
        largest = max(count_by_hand(a) for row in grid_by_hand(1) for a in row if count_by_hand(a) < WHOLE)
        with pytest.raises(InputError, match=f"the nearest are {largest}. Take one of these"):
            enumerate_space(MAP, Budget(WHOLE - 10, 1e-5))


def test_a_config_is_not_changed_by_looking_at_it() -> None:
    config: PretrainedConfig = MAP.config
    before = config.to_dict()
    enumerate_space(MAP, Budget(10_000, 0.02))
    assert config.to_dict() == before


def test_an_explosive_space_is_thinned_and_keeps_what_a_person_would_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = space_of("llama", 4 * 10**9)
    monkeypatch.setattr("space.enumeration.enumeration._ARCHITECTURES", 100)
    thin = enumerate_space(map_of("llama"), Budget(4 * 10**9, 0.02))
    teacher = map_of("llama").teacher
    assert len(thin) < len(whole)
    assert set(thin.architectures) <= set(whole.architectures)
    assert baselines(thin, teacher) == baselines(whole, teacher)


def test_a_mixture_of_many_axes_stays_within_bounds() -> None:
    space = enumerate_space(map_of("qwen2_moe"), Budget(7 * 10**9, 0.05))
    assert 1000 < len(space) <= 200_000
