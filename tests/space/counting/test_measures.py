"""Spaces of mixtures, and of budgets that count something else than all parameters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from space.axes.architecture import Architecture, Axis
from space.counting.budget import Budget, Measure
from space.counting.counting import active_polynomial, budget_polynomial, parameter_polynomial
from space.enumeration.enumeration import enumerate_space, smallest_sizes
from space.enumeration.limits import read_limits
from tests.space.maps import map_of, tiny_map


class TestMixtures:
    def test_a_slow_enumeration_finds_the_same(self) -> None:
        """Of a tiny Mixtral: hidden 36, heads 6 in 2 groups, experts of 40 neurons, in steps of eight."""
        axis_map = tiny_map("mixtral")
        teacher, count = axis_map.teacher, parameter_polynomial(axis_map)
        budget = Budget(round(0.6 * count.of(teacher)), 0.03)
        least, found = smallest_sizes(teacher, 0.6, Axis.EXPERT_MLP), set()
        widths = itertools.product(
            (8, 16, 24, 32, 36),
            (1, 2),
            (1, 2, 3),
            range(2, teacher.experts + 1),
            range(1, teacher.layers + 1),
        )
        for hidden, kv_heads, each, experts, layers in widths:
            sizes = {Axis.HIDDEN: hidden, Axis.KV_HEADS: kv_heads, Axis.HEADS: kv_heads * each}
            sizes |= {Axis.EXPERTS: experts, Axis.LAYERS: layers}
            if any(size < least[axis] or size > teacher[axis] for axis, size in sizes.items()):
                continue
            mlps = [n for n in range(8, teacher.expert_mlp + 1, 8) if n >= least[Axis.EXPERT_MLP]]
            row = [axis_map.complete(sizes | {Axis.EXPERT_MLP: neurons}) for neurons in mlps]
            best = min(row, key=lambda a: abs(count.of(a) - budget.amount))
            if budget.lowest <= count.of(best) <= budget.highest:
                found.add(best)
        space = enumerate_space(axis_map, budget)
        assert found
        assert set(space.architectures) == found

    def test_experts_are_never_fewer_than_a_token_is_sent_to(self) -> None:
        space = enumerate_space(map_of("mixtral"), Budget(2 * 10**9, 0.02))
        assert min(space.values(Axis.EXPERTS)) == 2

    def test_active_parameters_have_a_budget_of_their_own(self) -> None:
        axis_map = map_of("qwen2_moe")
        space = enumerate_space(axis_map, Budget(1_500_000_000, 0.02, Measure.ACTIVE))
        active = active_polynomial(axis_map).at({axis: space.column(axis) for axis in Axis})
        assert (np.abs(active / 1.5e9 - 1) <= 0.02).all()
        assert len(space.values(Axis.EXPERTS)) > 3, "the router alone holds weights that experts move"


class TestMeasures:
    @pytest.mark.parametrize("measure", list(Measure))
    @pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
    def test_every_member_is_within_the_budget(self, name: str, measure: Measure) -> None:
        axis_map = map_of(name)
        count = budget_polynomial(axis_map, Budget(1, 0.1, measure))
        budget = Budget(count.of(axis_map.teacher) // 2, 0.02, measure)
        space = enumerate_space(axis_map, budget)
        amounts = count.at({axis: space.column(axis) for axis in Axis})
        assert len(space)
        assert (amounts >= budget.lowest).all()
        assert (amounts <= budget.highest).all()

    def test_bytes_of_weights_are_parameters_times_bytes(self) -> None:
        weights = enumerate_space(map_of("llama"), Budget(8 * 10**9, 0.02, Measure.WEIGHTS))
        assert np.array_equal(weights.table, enumerate_space(map_of("llama"), Budget(4 * 10**9, 0.02)).table)

    def test_a_budget_cuts_only_what_it_measures(self) -> None:
        """Half of Llama's cache: half of the groups with all of their queries, or half of the layers."""
        budget = Budget(65_536, 0.02, Measure.KV_CACHE)
        space = enumerate_space(map_of("llama"), budget)
        assert set(space.architectures) == {
            Architecture(4096, 14336, 16, 4, 32),
            Architecture(4096, 14336, 32, 8, 16),
        }
        narrower = enumerate_space(map_of("llama"), budget, read_limits([], ["mlp=7168,14336"]))
        assert len(narrower) == 4
        assert Architecture(4096, 7168, 32, 8, 16) in list(narrower.architectures)
