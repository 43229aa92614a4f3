"""Scores of single layers as those of a ranking: a row a layer, zeros where a layer lacks the axis."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap

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


def rows(axis_map: AxisMap, axis: Axis, scores: Mapping[int, Tensor]) -> dict[Axis, Tensor]:
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
