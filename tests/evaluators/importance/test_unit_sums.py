"""Sums over units against where the layouts place each of them, in classes built in every way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from evaluators.importance.unit_scores import BY_LAYER, unit_sums
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor
from space.axes.layout import positions
from space.counting.counting import expert_groups
from tests.contracts.tiny import each, verified

#: Fused and interleaved tensors, matrices with hidden on both sides, groups of experts, entries of heads.
CLASSES = ("lfm2", "bloom", "phi3", "falcon", "gpt_neox", "deepseek_v3")


def entries(axis_map: AxisMap, tensor: MappedTensor, place: int, axis: Axis, unit: int) -> Tensor:
    """(length,) which entries of a dimension belong to a unit: those that come twice if it does."""
    teacher = axis_map.teacher
    rows = {Axis.HEADS: teacher.heads // teacher.kv_heads}
    if teacher.experts:
        rows[Axis.EXPERTS] = teacher.experts // expert_groups(axis_map)

    def order(of: Axis, within: int | None) -> Tensor:
        units = rows.get(of, teacher[of])
        around, number = divmod(unit, units)
        here = of is axis and (axis not in rows or (within or 0) == around)
        return torch.tensor([*range(units), *([number] if here else [])])

    return torch.bincount(positions(tensor.dimensions[place], order)) == 2


def mask(axis_map: AxisMap, tensor: MappedTensor, axis: Axis, unit: int) -> Tensor:
    """Of the tensor's shape: its entries that lie along any dimension at the unit's."""
    shape = [dimension.length for dimension in tensor.dimensions]
    found = torch.zeros(shape, dtype=torch.bool)
    for place in range(len(shape)):
        if axis in tensor.axes[place]:
            along = entries(axis_map, tensor, place, axis, unit)
            found |= along.reshape([-1 if at == place else 1 for at in range(len(shape))])
    return found


def masks(axis_map: AxisMap, tensor: MappedTensor, axis: Axis) -> Iterator[Tensor]:
    """Of each unit, one after the other, how much of each entry counts for it."""
    teacher = axis_map.teacher
    if axis is Axis.EXPERT_MLP:
        for expert, neuron in itertools.product(range(teacher.experts), range(teacher.expert_mlp)):
            experts = mask(axis_map, tensor, Axis.EXPERTS, expert)
            yield (experts & mask(axis_map, tensor, axis, neuron)).double()
        return
    for unit in range(teacher[axis]):
        own = mask(axis_map, tensor, axis, unit)
        if axis is not Axis.HEADS:
            yield own.double()
            continue
        size = teacher.heads // teacher.kv_heads
        group = mask(axis_map, tensor, Axis.KV_HEADS, unit // size)
        of_heads = [mask(axis_map, tensor, axis, unit // size * size + head) for head in range(size)]
        shared = group & ~torch.stack(of_heads).any(0)
        yield own.double() + shared.double() / size


@pytest.mark.parametrize("name", each(*CLASSES))
def test_sums_are_those_of_the_entries_of_each_unit(name: str) -> None:
    axis_map = verified(name).small
    generator, seen = torch.Generator().manual_seed(0), set()
    for tensor in axis_map.tensors:
        values = torch.randn([dimension.length for dimension in tensor.dimensions], generator=generator)
        for axis in (Axis.HIDDEN, *BY_LAYER):
            known = tuple(map(str, tensor.dimensions)), axis
            if known in seen or not tensor.has(axis):
                continue
            seen.add(known)
            wanted = torch.stack([(values * part).sum() for part in masks(axis_map, tensor, axis)])
            found = unit_sums(values, tensor, axis, axis_map)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4, msg=f"{tensor.name} {axis}")
    assert {axis for _, axis in seen} == {
        axis for axis in (Axis.HIDDEN, *BY_LAYER) if any(tensor.has(axis) for tensor in axis_map.tensors)
    }
