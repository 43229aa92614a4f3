"""Sums over the entries of each unit, and the baselines that activations are compared to: weights and chance.

The layouts of the axis map say which unit every entry of a dimension belongs to, so one function serves
fused, transposed and interleaved tensors, and those that hold all experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit, axes_of
from space.cutting.extraction import saved_tensors

#: The axes whose units are scored in each layer separately.
BY_LAYER = (
    Axis.MLP,
    Axis.SHARED_MLP,
    Axis.HEADS,
    Axis.HEAD_DIM,
    Axis.EXPERTS,
    Axis.EXPERT_MLP,
)


def layers_with(axis_map: AxisMap, axis: Axis) -> frozenset[int]:
    """Return the layers with a tensor that has the axis."""
    return frozenset(t.layer for t in axis_map.tensors if t.layer is not None and t.has(axis))


def row_shape(axis_map: AxisMap, axis: Axis) -> tuple[int, ...]:
    """Return the shape of one layer's scores: (units,), or (E, I) for the neurons of experts."""
    teacher = axis_map.teacher
    return (teacher.experts, teacher.expert_mlp) if axis is Axis.EXPERT_MLP else (teacher[axis],)


def score_rows(axis_map: AxisMap, axis: Axis, scores: Mapping[int, Tensor]) -> dict[Axis, Tensor]:
    """Return (L, ...) float64 scores of an axis; empty if no tensor of any layer has it.

    Args:
        axis_map: the teacher's.
        axis: one of ``BY_LAYER``.
        scores: by layer, each in ``row_shape``, for all layers that have the axis; others are ignored.
    """
    layers = layers_with(axis_map, axis)
    zeros = torch.zeros(row_shape(axis_map, axis), dtype=torch.float64)
    every = [scores[layer] if layer in layers else zeros for layer in range(axis_map.teacher.layers)]
    return {axis: torch.stack(every)} if layers else {}


class UnitSums:
    """The sum over the entries of each unit: of hidden over the whole model, of other axes in each layer."""

    def __init__(self, axis_map: AxisMap) -> None:
        self.axis_map = axis_map
        self.sums: dict[tuple[Axis, int | None], Tensor] = {}
        """(units,) float64 by axis and layer; (E · I,) for the neurons of experts, expert after expert."""

    def add(self, tensor: MappedTensor, values: Tensor) -> None:
        """Add one value per entry of a tensor, summed in float32 over all dimensions but the units'."""
        if tensor.has(Axis.HIDDEN):
            self._add((Axis.HIDDEN, None), unit_sums(values, tensor, Axis.HIDDEN, self.axis_map))
        if tensor.layer is None:
            return
        for axis in BY_LAYER:
            if tensor.has(axis) or (axis is Axis.HEADS and tensor.has(Axis.KV_HEADS)):
                self._add((axis, tensor.layer), unit_sums(values, tensor, axis, self.axis_map))

    def _add(self, key: tuple[Axis, int | None], sums: Tensor) -> None:
        self.sums[key] = self.sums[key] + sums if key in self.sums else sums


def unit_sums(values: Tensor, tensor: MappedTensor, axis: Axis, axis_map: AxisMap) -> Tensor:
    """Return the sum over the entries of each unit, (units,) float64; each entry counts once.

    The keys and values that the heads of a KV group share are divided equally among those heads.

    Args:
        values: one value per entry, in the tensor's shape.
        tensor: the tensor's entry in the axis map.
        axis: whose units to sum; for EXPERT_MLP the result is (E · I,).
        axis_map: the teacher's.
    """
    values = values.float()
    if axis is Axis.EXPERT_MLP:
        return _expert_neuron_sums(values, tensor, axis_map)
    units = axis_map.teacher[axis]
    sums = values.new_zeros(units, dtype=torch.float64)
    places = [place for place, axes in enumerate(tensor.axes) if axis in axes]
    for number, place in enumerate(places):
        uncounted = _mask_counted(values, tensor, axis, units, places[:number], place)
        sums += _sum_by(uncounted, place, unit_numbers(tensor.dimensions[place], axis, units), units)
    return sums + _kv_group_shares(values, tensor, axis_map) if axis is Axis.HEADS else sums


@lru_cache(maxsize=256)
def unit_numbers(layout: Layout, axis: Axis, units: int, within: int = 0) -> Tensor:
    """Return (length,): the unit index of each entry of a dimension, and ``units`` for entries of no unit.

    Args:
        layout: the dimension's.
        axis: whose units.
        units: the size of the whole axis. If a part holds fewer units, such as the heads of one KV group, the
            indices continue in the next part.
        within: the index of this part in the enclosing layout.
    """
    match layout:
        case Fixed(length):
            return torch.full((length,), units)
        case Concatenated(parts):
            return torch.cat([unit_numbers(part, axis, units, within) for part in parts])
        case PerUnit(of, number, inner) if of is axis:
            first = within * number if number < units else 0
            return (first + torch.arange(number)).repeat_interleave(inner.length)
        case PerUnit(_, number, inner):
            if axis not in axes_of(inner):
                return torch.full((layout.length,), units)
            return torch.cat([unit_numbers(inner, axis, units, unit) for unit in range(number)])


def _sum_by(values: Tensor, place: int, numbers: Tensor, units: int) -> Tensor:
    """Return (units,) float64: sums over the entries of each unit index along a dimension."""
    rows = values.movedim(place, 0).reshape(len(numbers), -1).sum(dim=1)
    sums = values.new_zeros(units + 1, dtype=torch.float64)
    return sums.index_add_(0, numbers.to(values.device), rows.double())[:units]


def _mask_counted(
    values: Tensor, tensor: MappedTensor, axis: Axis, units: int, before: list[int], place: int
) -> Tensor:
    """Return the values, 0 where an entry belongs to the same unit along an earlier dimension."""
    for earlier in before:
        one, other = (
            unit_numbers(tensor.dimensions[at], axis, units)
            .to(values.device)
            .reshape([-1 if dimension == at else 1 for dimension in range(values.ndim)])
            for at in (earlier, place)
        )
        values = values.masked_fill(one == other, 0)
    return values


def _kv_group_shares(values: Tensor, tensor: MappedTensor, axis_map: AxisMap) -> Tensor:
    """Return (H,) float64: each head's share of the entries that belong to its KV group as a whole."""
    heads, groups = axis_map.teacher.heads, axis_map.teacher.kv_heads
    sums = values.new_zeros(heads, dtype=torch.float64)
    for place, axes in enumerate(tensor.axes):
        if Axis.KV_HEADS in axes:
            layout = tensor.dimensions[place]
            of_heads = unit_numbers(layout, Axis.HEADS, heads) < heads
            numbers = unit_numbers(layout, Axis.KV_HEADS, groups).masked_fill(of_heads, groups)
            shares = _sum_by(values, place, numbers, groups) * groups / heads
            sums += shares.repeat_interleave(heads // groups)
    return sums


def _expert_neuron_sums(values: Tensor, tensor: MappedTensor, axis_map: AxisMap) -> Tensor:
    """Return (E · I,) float64: sums over the entries of each neuron of each expert."""
    experts, neurons = axis_map.teacher.experts, axis_map.teacher.expert_mlp
    of_experts, of_neurons = (
        next(place for place, axes in enumerate(tensor.axes) if axis in axes)
        for axis in (Axis.EXPERTS, Axis.EXPERT_MLP)
    )
    assert of_experts != of_neurons, f"{tensor.name} has experts and their neurons in one dimension"
    expert = unit_numbers(tensor.dimensions[of_experts], Axis.EXPERTS, experts)
    neuron = unit_numbers(tensor.dimensions[of_neurons], Axis.EXPERT_MLP, neurons)
    matrix = values.movedim((of_experts, of_neurons), (0, 1)).reshape(len(expert), len(neuron), -1)
    sums = values.new_zeros(experts + 1, neurons + 1, dtype=torch.float64)
    at = expert[:, None] * (neurons + 1) + neuron
    sums.flatten().index_add_(0, at.flatten().to(values.device), matrix.sum(dim=2).double().flatten())
    return sums[:experts, :neurons].flatten()


Scores = dict[Axis, Tensor]


def scores_of_units(axis_map: AxisMap, units: dict[tuple[Axis, int | None], Tensor]) -> Scores:
    """Return scores in the shapes of ``Ranking.scores``, float64 on the CPU.

    Args:
        axis_map: the teacher's.
        units: scores in the shapes of ``UnitSums.sums``, for every layer that has an axis.
    """
    scores = {Axis.HIDDEN: units[Axis.HIDDEN, None].cpu()} if (Axis.HIDDEN, None) in units else {}
    for axis in BY_LAYER:
        shape = row_shape(axis_map, axis)
        layers = {layer: units[axis, layer].cpu().reshape(shape) for layer in layers_with(axis_map, axis)}
        scores |= score_rows(axis_map, axis, layers)
    return scores


@torch.no_grad()
def magnitudes(model: PreTrainedModel, axis_map: AxisMap) -> Scores:
    """Return √Σw² over all weights of each unit: of hidden in the whole model, of other axes in its layer.

    Tied weights count once. Keys and values that heads share are divided equally among them.

    Args:
        model: the teacher.
        axis_map: the teacher's.

    Returns:
        Scores of every axis but LAYERS, in the shapes of ``Ranking.scores``, float64.
    """
    sums, weights = UnitSums(axis_map), saved_tensors(model, axis_map)
    for tensor in axis_map.tensors:
        if tensor.name not in axis_map.buffers:
            sums.add(tensor, weights[tensor.name].detach().float().square())
    return scores_of_units(axis_map, {key: total.sqrt() for key, total in sums.sums.items()})


def random_scores(axis_map: AxisMap, seed: int) -> Scores:
    """Return random scores from 0 to 1 for every axis but LAYERS, in the shapes of ``Ranking.scores``."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    hidden = any(tensor.has(Axis.HIDDEN) for tensor in axis_map.tensors)
    scores = {Axis.HIDDEN: uniform(axis_map.teacher.hidden)} if hidden else {}
    for axis in BY_LAYER:
        layers = sorted(layers_with(axis_map, axis))
        scores |= score_rows(axis_map, axis, {layer: uniform(*row_shape(axis_map, axis)) for layer in layers})
    return scores
