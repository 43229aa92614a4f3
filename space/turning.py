"""Turning the whole residual stream into another basis, without changing what a model computes.

A decoder whose norms divide by the root mean square computes the same in any orthogonal basis of the
stream, once the weights of every norm have been folded into the matrices that read it: readers and
writers are turned, and all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from space.architecture import Axis
from space.axis_map import AxisMap, Stream
from space.scales import starred

Weights = Mapping[str, Tensor]


def folded(weights: Weights, axis_map: AxisMap, stream: Stream) -> dict[str, Tensor]:
    """The same function with every norm's weight moved into the matrices that read it.

    Args:
        weights: by name; stay as they are.
        axis_map: of the model.
        stream: of its class.
    """
    found = dict(weights)
    for norm in axis_map.tensors:
        readers = stream.readers.get(starred(norm.name))
        if readers is None:
            continue
        gain = weights[norm.name] + stream.offset
        for tensor in axis_map.tensors:
            if starred(tensor.name) in readers and norm.layer in (None, tensor.layer):
                place = hidden_place(tensor.axes)
                found[tensor.name] = (found[tensor.name].movedim(place, -1) * gain).movedim(-1, place)
        found[norm.name] = torch.full_like(weights[norm.name], 1 - stream.offset)
    return found


def turned(weights: Weights, axis_map: AxisMap, stream: Stream, rotation: Tensor) -> dict[str, Tensor]:
    """The same function in another basis of the stream.

    Args:
        weights: from ``folded``.
        axis_map: of the model.
        stream: of its class.
        rotation: (D, D) orthogonal, new directions in columns.
    """
    found = dict(weights)
    for tensor in axis_map.tensors:
        if tensor.has(Axis.HIDDEN) and starred(tensor.name) not in stream.readers:
            values, place = weights[tensor.name], hidden_place(tensor.axes)
            matrix = rotation.to(values.device, torch.promote_types(values.dtype, torch.float32))
            along = (values.movedim(place, -1).to(matrix.dtype) @ matrix).to(values.dtype)
            found[tensor.name] = along.movedim(-1, place).contiguous()
    return found


def hidden_place(axes: tuple[frozenset[Axis], ...]) -> int:
    """The dimension that runs along hidden."""
    return next(place for place, moving in enumerate(axes) if Axis.HIDDEN in moving)
