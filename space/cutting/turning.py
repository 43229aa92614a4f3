"""Turning the whole residual stream into another basis, without changing what a model computes.

A decoder whose norms divide by the root mean square computes the same in any orthogonal basis of the
stream, once the weights of every norm have been folded into the matrices that read it: readers and
writers are turned, and all of them at once. Where norms also subtract the mean, it does so in any basis that
leaves the direction of the mean where it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, Stream
from space.axes.scales import starred
from space.input_error import InputError

Weights = Mapping[str, Tensor]
#: Of a norm's weights, relative to the largest: to divide by less would lose digits.
_LEAST_GAIN = 1e-4


def folded(weights: Weights, axis_map: AxisMap, stream: Stream) -> dict[str, Tensor]:
    """The same function with every norm's weight moved into the matrices that read it.

    Args:
        weights: by name; stay as they are.
        axis_map: of the model.
        stream: of its class.

    Raises:
        InputError: a norm has a bias where its weight is next to nothing.
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
        bias = f"{norm.module}.bias"
        if bias in weights:
            found[bias] = _behind(weights[bias], gain, bias)
    return found


def _behind(bias: Tensor, gain: Tensor, name: str) -> Tensor:
    """(D,) what has to be added before the gain is applied, so that the bias is what is added after it."""
    lost = (gain.abs() < _LEAST_GAIN * gain.abs().max()) & (bias != 0)
    if bool(lost.any()):
        raise InputError(
            "A basis other than coordinates needs norms that let through what they add",
            f"{name} adds to {int(lost.sum())} dimensions whose weight is next to 0",
            "Take --basis coordinate",
        )
    return torch.where(bias == 0, torch.zeros_like(bias), bias / gain)


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
