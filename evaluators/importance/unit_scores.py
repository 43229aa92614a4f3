"""Scores of units from the weights themselves, and by chance: what activations are compared to.

The axis map says of every dimension how its entries are made up of units, so that one function does for
fused, transposed and interleaved tensors, and for those of all experts at once.
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

#: The axes whose units are scored in each layer for itself.
BY_LAYER = (
    Axis.MLP,
    Axis.SHARED_MLP,
    Axis.HEADS,
    Axis.HEAD_DIM,
    Axis.EXPERTS,
    Axis.EXPERT_MLP,
)


def layers_with(axis_map: AxisMap, axis: Axis) -> frozenset[int]:
    """The layers that have a tensor which the axis moves."""
    return frozenset(t.layer for t in axis_map.tensors if t.layer is not None and t.has(axis))


def row_shape(axis_map: AxisMap, axis: Axis) -> tuple[int, ...]:
    """Of one layer's scores: (units,), of the neurons of experts (E, I)."""
    teacher = axis_map.teacher
    return (teacher.experts, teacher.expert_mlp) if axis is Axis.EXPERT_MLP else (teacher[axis],)


def score_rows(axis_map: AxisMap, axis: Axis, scores: Mapping[int, Tensor]) -> dict[Axis, Tensor]:
    """(L, ...) float64 scores of an axis; nothing if no tensor of any layer has it.

    Args:
        axis_map: the teacher's.
        axis: one of ``BY_LAYER``.
        scores: of every layer that has the axis, each in ``row_shape``; those of other layers are left out.
    """
    layers = layers_with(axis_map, axis)
    nothing = torch.zeros(row_shape(axis_map, axis), dtype=torch.float64)
    every = [scores[layer] if layer in layers else nothing for layer in range(axis_map.teacher.layers)]
    return {axis: torch.stack(every)} if layers else {}


class UnitSums:
    """What the entries of each unit add up to: of hidden over the whole model, of all else in each layer."""

    def __init__(self, axis_map: AxisMap) -> None:
        self.axis_map = axis_map
        self.sums: dict[tuple[Axis, int | None], Tensor] = {}
        """(units,) float64 by axis and layer; (E · I,) for the neurons of experts, expert by expert."""

    def add(self, tensor: MappedTensor, values: Tensor) -> None:
        """Take in one number an entry of a tensor, summed in float32 over all but the units' dimension."""
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
    """(units,) float64: the sum over the entries of each unit, each entry once.

    The keys and values that the heads of a group share count for them in equal parts.

    Args:
        values: one number an entry, of the tensor's shape.
        tensor: its place in the map.
        axis: whose units; (E · I,) for EXPERT_MLP.
        axis_map: the teacher's.
    """
    values = values.float()
    if axis is Axis.EXPERT_MLP:
        return _of_neurons(values, tensor, axis_map)
    units = axis_map.teacher[axis]
    sums = values.new_zeros(units, dtype=torch.float64)
    places = [place for place, axes in enumerate(tensor.axes) if axis in axes]
    for number, place in enumerate(places):
        left = _without(values, tensor, axis, units, places[:number], place)
        sums += _sum_by(left, place, unit_numbers(tensor.dimensions[place], axis, units), units)
    return sums + _of_groups(values, tensor, axis_map) if axis is Axis.HEADS else sums


@lru_cache(maxsize=256)
def unit_numbers(layout: Layout, axis: Axis, units: int, within: int = 0) -> Tensor:
    """(length,) for each entry of a dimension the number of its unit, and ``units`` for entries of none.

    Args:
        layout: of the dimension.
        axis: whose units.
        units: of the whole axis; where fewer follow one another, such as the heads of a group, those of
            the next part are counted on.
        within: the number of this part in what is around it.
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
    """(units,) float64 sums over the entries of each number along a dimension."""
    rows = values.movedim(place, 0).reshape(len(numbers), -1).sum(dim=1)
    sums = values.new_zeros(units + 1, dtype=torch.float64)
    return sums.index_add_(0, numbers.to(values.device), rows.double())[:units]


def _without(
    values: Tensor, tensor: MappedTensor, axis: Axis, units: int, before: list[int], place: int
) -> Tensor:
    """The values, with nothing where an entry has counted for the same unit along an earlier dimension."""
    for earlier in before:
        one, other = (
            unit_numbers(tensor.dimensions[at], axis, units)
            .to(values.device)
            .reshape([-1 if dimension == at else 1 for dimension in range(values.ndim)])
            for at in (earlier, place)
        )
        values = values.masked_fill(one == other, 0)
    return values


def _of_groups(values: Tensor, tensor: MappedTensor, axis_map: AxisMap) -> Tensor:
    """(H,) float64: for each head its share of the entries that belong to its group as a whole."""
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


def _of_neurons(values: Tensor, tensor: MappedTensor, axis_map: AxisMap) -> Tensor:
    """(E · I,) float64 sums over the entries of each neuron of each expert."""
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
    """Scores by axis and layer in the shapes of ``Ranking.scores``, float64 on the host.

    Args:
        axis_map: the teacher's.
        units: in the shapes of ``UnitSums.sums``, for every layer that has an axis.
    """
    scores = {Axis.HIDDEN: units[Axis.HIDDEN, None].cpu()} if (Axis.HIDDEN, None) in units else {}
    for axis in BY_LAYER:
        shape = row_shape(axis_map, axis)
        layers = {layer: units[axis, layer].cpu().reshape(shape) for layer in layers_with(axis_map, axis)}
        scores |= score_rows(axis_map, axis, layers)
    return scores


@torch.no_grad()
def magnitudes(model: PreTrainedModel, axis_map: AxisMap) -> Scores:
    """√Σw² of each unit over all its weights; of hidden over the whole model, of all else in its layer.

    Tied weights count once. Keys and values that a group of heads shares count for its heads in equal parts.

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
    """Numbers between 0 and 1 for the units of every axis but LAYERS, shaped as in ``Ranking.scores``."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    hidden = any(tensor.has(Axis.HIDDEN) for tensor in axis_map.tensors)
    scores = {Axis.HIDDEN: drawn(axis_map.teacher.hidden)} if hidden else {}
    for axis in BY_LAYER:
        layers = sorted(layers_with(axis_map, axis))
        scores |= score_rows(axis_map, axis, {layer: drawn(*row_shape(axis_map, axis)) for layer in layers})
    return scores
