"""What importance by activations is compared to: size of the weights, and chance."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.importance.rows import BY_LAYER, layers_with, row_shape, rows
from evaluators.importance.unit_sums import UnitSums
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.cutting.extraction import saved_tensors

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
        scores |= rows(axis_map, axis, layers)
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
        scores |= rows(axis_map, axis, {layer: drawn(*row_shape(axis_map, axis)) for layer in layers})
    return scores
