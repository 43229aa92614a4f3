from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from space.axes.architecture import Architecture, Axis
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit, axes_of, kept_units, positions, prefix

H, K, F, E, D = Axis.HEADS, Axis.KV_HEADS, Axis.MLP, Axis.EXPERTS, Axis.HEAD_DIM
ONE = Fixed(1)


def identity(sizes: dict[Axis, int]) -> Callable[[Axis, int | None], Tensor]:
    return lambda axis, within: torch.arange(sizes[axis])


class TestKnownDimensions:
    QUERIES = PerUnit(K, 3, PerUnit(H, 2, Fixed(2)))
    TEACHER = Architecture(4, 4, 6, 3, 1)

    def test_lengths_and_axes(self) -> None:
        fused = Concatenated((self.QUERIES, PerUnit(K, 3, Fixed(2)), Fixed(5)))
        assert (self.QUERIES.length, fused.length) == (12, 12 + 6 + 5)
        assert list(axes_of(fused)) == [K, H, K]
        assert str(fused) == "(kv_heads×heads×2 + kv_heads×2 + 5)"
        assert str(PerUnit(None, 2, PerUnit(E, 3, ONE))) == "2×experts"

    def test_queries_stay_with_their_group(self) -> None:
        orders = {(K, None): [2, 0, 1], (H, 2): [1, 0], (H, 0): [0, 1], (H, 1): [1, 0]}
        found = positions(self.QUERIES, lambda axis, within: torch.tensor(orders[axis, within]))
        assert found.tolist() == [10, 11, 8, 9, 0, 1, 2, 3, 6, 7, 4, 5]

    def test_a_prefix_of_heads_is_one_of_each_group(self) -> None:
        """Six heads of two entries in three groups; two groups are kept and one head of each."""
        student = Architecture(4, 4, 2, 2, 1)
        assert prefix(torch.arange(12), 0, self.QUERIES, student, self.TEACHER).tolist() == [0, 1, 4, 5]
        pairs = PerUnit(K, 3, Fixed(4))
        assert prefix(torch.arange(12), 0, pairs, student, self.TEACHER).tolist() == [*range(8)]
        table = torch.arange(24).reshape(2, 12)
        found = prefix(table, 1, self.QUERIES, student, self.TEACHER)
        assert found.tolist() == [[0, 1, 4, 5], [12, 13, 16, 17]]

    def test_gates_and_ups_lose_the_same(self) -> None:
        teacher, student = Architecture(4, 4, 1, 1, 1), Architecture(4, 3, 1, 1, 1)
        apart = Concatenated((PerUnit(F, 4, ONE), PerUnit(F, 4, ONE)))
        assert prefix(torch.arange(8), 0, apart, student, teacher).tolist() == [0, 1, 2, 4, 5, 6]
        assert prefix(torch.arange(8), 0, PerUnit(F, 4, Fixed(2)), student, teacher).tolist() == [*range(6)]

    def test_every_group_of_experts_loses_as_many(self) -> None:
        teacher, student = Architecture(4, 0, 1, 1, 1, experts=6), Architecture(4, 0, 1, 1, 1, experts=4)
        groups = PerUnit(None, 2, PerUnit(E, 3, ONE))
        assert prefix(torch.arange(6), 0, groups, student, teacher).tolist() == [0, 1, 3, 4]
        order = positions(groups, lambda _, within: torch.tensor([[2, 0, 1], [1, 2, 0]][within or 0]))
        assert order.tolist() == [2, 0, 1, 4, 5, 3]

    @pytest.mark.parametrize("layout", [PerUnit(F, 4, Fixed(2)), Fixed(8)])
    def test_a_prefix_is_a_view_where_one_is_possible(self, layout: Layout) -> None:
        values = torch.arange(8)
        teacher, student = Architecture(4, 4, 1, 1, 1), Architecture(4, 3, 1, 1, 1)
        found = prefix(values, 0, layout, student, teacher)
        assert found.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()


SIZES = Architecture(4, mlp=5, heads=6, kv_heads=3, layers=1, experts=4, head_dim=3)


def _of_heads(entries: int) -> st.SearchStrategy[Layout]:
    """What one head has: entries that stay, or that can be cut, once or in a few rows."""
    cut = PerUnit(D, 3, ONE)
    return st.sampled_from([Fixed(entries), cut, PerUnit(None, 2, cut), Concatenated((cut, Fixed(entries)))])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Dimensions as classes have them, of the sizes above."""
    head = draw(_of_heads(draw(st.integers(1, 3))))
    queries, keys = PerUnit(K, 3, PerUnit(H, 2, head)), PerUnit(K, 3, head)
    neurons = PerUnit(F, 5, Fixed(draw(st.integers(1, 2))))
    forms: list[Layout] = [
        queries,
        Concatenated((queries, keys, keys)),
        Concatenated((keys, Fixed(2), queries)),
        PerUnit(K, 3, Concatenated((PerUnit(H, 2, head), head, head))),
        neurons,
        Concatenated((neurons, neurons)),
        PerUnit(None, draw(st.sampled_from((1, 2))), PerUnit(E, 4, neurons)),
        Fixed(draw(st.integers(1, 4))),
    ]
    inner: list[Layout] = [ONE, neurons]
    forms += [PerUnit(None, 2, PerUnit(E, 2, one)) for one in inner]
    return draw(st.sampled_from(forms))


@st.composite
def students(draw: st.DrawFn) -> Architecture:
    groups = draw(st.integers(1, 3))
    return Architecture(
        4,
        mlp=draw(st.integers(1, 5)),
        heads=groups * draw(st.integers(1, 2)),
        kv_heads=groups,
        layers=1,
        experts=2 * draw(st.integers(1, 2)),
        head_dim=draw(st.integers(1, 3)),
    )


def order_of(seed: int, student: Architecture | None, layout: Layout) -> Callable[[Axis, int | None], Tensor]:
    """A random order for every axis and unit around it, cut to the student's sizes if one is given."""
    units = dict(_units(layout))

    def order(axis: Axis, within: int | None) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, axis.value, within)) % 2**31)
        whole = torch.randperm(units[axis], generator=generator)
        return whole if student is None else whole[: kept_units(axis, units[axis], student, SIZES)]

    return order


def _units(layout: Layout) -> list[tuple[Axis, int]]:
    match layout:
        case PerUnit(axis, units, inner):
            return ([] if axis is None else [(axis, units)]) + _units(inner)
        case Concatenated(parts):
            return [pair for part in parts for pair in _units(part)]
    return []


class TestLaws:
    @given(layouts())
    def test_in_their_own_order_all_stay(self, layout: Layout) -> None:
        whole = dict(_units(layout))
        assert torch.equal(positions(layout, identity(whole)), torch.arange(layout.length))

    @given(layouts(), st.integers())
    def test_sorting_loses_and_repeats_nothing(self, layout: Layout, seed: int) -> None:
        found = positions(layout, order_of(seed, None, layout))
        assert torch.equal(found.sort().values, torch.arange(layout.length))

    @given(layouts(), students(), st.integers())
    def test_a_prefix_of_the_sorted_is_what_the_best_units_hold(
        self, layout: Layout, student: Architecture, seed: int
    ) -> None:
        values = torch.arange(layout.length) * 10
        in_order = values[positions(layout, order_of(seed, None, layout))]
        best = values[positions(layout, order_of(seed, student, layout))]
        assert torch.equal(prefix(in_order, 0, layout, student, SIZES), best)

    @given(layouts(), students(), st.integers(0, 2))
    def test_other_dimensions_are_left_alone(self, layout: Layout, student: Architecture, place: int) -> None:
        shape = [2, 3, 2]
        shape[place] = layout.length
        values = torch.arange(torch.Size(shape).numel()).reshape(shape)
        found = prefix(values, place, layout, student, SIZES)
        index = prefix(torch.arange(layout.length), 0, layout, student, SIZES)
        assert torch.equal(found, values.index_select(place, index))

    @given(layouts())
    def test_the_teacher_is_its_own_prefix(self, layout: Layout) -> None:
        values = torch.arange(layout.length)
        assert torch.equal(prefix(values, 0, layout, SIZES, SIZES), values)
