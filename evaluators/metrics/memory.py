"""The bytes of weights, gradients, optimiser states, moments and their kin, in closed form.

What a class's own code holds while it runs is counted in ``activation_memory`` and ``forward_memory``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from evaluators.importance.moments import stream_norms
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap, MappedTensor, build
from space.axes.polynomial import Polynomial, entry_count, sum_of_tensors
from space.counting.counting import parameter_polynomial
from space.cutting.extraction import student_config
from space.cutting.moment_sizes import read_sizes

#: Resident bytes of a process on the CPU after its imports, as ``studies.benchmarks memory`` measures them.
PROCESS = 700_000_000
#: An allowance for what a process takes of a GPU beside tensors: the CUDA context and the libraries'
#: workspaces. Nobody measured it on the card at hand.
CUDA_WORKSPACE = 1_000_000_000

Parts = Mapping[str, int]
"""Bytes by what they are for."""


@dataclass(frozen=True)
class StageNeeds:
    """What one stage of a run holds at its height."""

    stage: str
    device: Parts = field(default_factory=dict)
    host: Parts = field(default_factory=dict)

    @property
    def device_bytes(self) -> int:
        """Of the device."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """Of the host."""
        return sum(self.host.values())

    def on_one(self) -> StageNeeds:
        """Return the same where device and host are one: everything counts for the host."""
        return StageNeeds(self.stage, {}, {**self.device, **self.host})


def student_shapes(axis_map: AxisMap, architecture: Architecture) -> list[torch.Size]:
    """Return the shapes of a student's parameters, tied ones once."""
    config = student_config(axis_map, architecture, range(architecture.layers))
    return [parameter.shape for parameter in build(config).parameters()]


def weight_bytes(axis_map: AxisMap, dtype: torch.dtype, architecture: Architecture | None = None) -> int:
    """Return the bytes of the weights of a model, by default of the map's own; tied ones count once."""
    return parameter_polynomial(axis_map).of(architecture or axis_map.teacher) * dtype.itemsize


def largest_tensor(axis_map: AxisMap) -> int:
    """Return the number of entries of a teacher's largest tensor."""
    return max(_entries(tensor) for tensor in axis_map.tensors)


def sorting_bytes(axis_map: AxisMap, dtype: torch.dtype, *, stays: bool, turned: bool) -> int:
    """Return the most bytes of sorting a teacher's weights, tensor by tensor in the map's order.

    A tensor is selected along a dimension and copied, so it is there twice while it is made; in another
    basis it is turned before, in float32 with a result in float32.

    Args:
        axis_map: the teacher's.
        dtype: of its weights.
        stays: whether the sorted tensors stay in memory; else each is written away.
        turned: whether they get another basis.
    """
    done = peak = 0
    for tensor in axis_map.tensors:
        size = _entries(tensor)
        peak = max(peak, done + size * (2 * dtype.itemsize + 8 * turned))
        done += size * dtype.itemsize * stays
    return max(peak, done)


def head_bytes(axis_map: AxisMap, dtype: torch.dtype) -> int:
    """Return the bytes of the head alone, vocabulary times hidden."""
    vocabulary: int = axis_map.config.get_text_config(decoder=True).vocab_size
    return vocabulary * axis_map.teacher.hidden * dtype.itemsize


def one_layer_bytes(axis_map: AxisMap, dtype: torch.dtype) -> int:
    """Return the bytes of a teacher of which one layer is loaded at a time: the largest, and all around."""
    layers: Counter[int | None] = Counter()
    for tensor in axis_map.tensors:
        layers[tensor.layer] += _entries(tensor)
    outside = layers.pop(None, 0)
    return (outside + max(layers.values(), default=0)) * dtype.itemsize


def _entries(tensor: MappedTensor) -> int:
    return math.prod(dimension.length for dimension in tensor.dimensions)


def stream_bytes(axis_map: AxisMap) -> int:
    """Return the bytes of the stream's moments, 8 D² for each norm; without a basis they are not sorted."""
    return 8 * axis_map.teacher.hidden**2 * len(stream_norms(axis_map))


def refit_bytes(axis_map: AxisMap, *, halved: bool = False) -> int:
    """Return the most bytes of a least-squares repair of one matrix, where its student is cut.

    Of n inputs, nearly all kept: the sorted moment in float32, and in float64 the part of it that is kept,
    that with the ridge, and its factors. A stream that is turned has a moment of D inputs in float64. Where
    the moments of both halves of the tokens are there, each is so in float32 and in float64.
    """
    lengths = [size.inputs for size in read_sizes(axis_map)]
    lengths += [axis_map.teacher.hidden] if stream_norms(axis_map) else []
    return (4 + 3 * 8 + halved * 2 * 12) * max(lengths, default=0) ** 2


def rows_polynomial(axis_map: AxisMap) -> Polynomial:
    """Return the inputs and outputs of all matrices inside the layers, for a token.

    In mixed precision two bytes for each are near what a training step saves for its backward pass. It
    compares students, and stands in where a class cannot run without values.
    """
    matrices = [t for t in axis_map.tensors if t.layer is not None and len(t.dimensions) == 2]
    return sum_of_tensors(
        axis_map,
        matrices,
        lambda tensor, _: Polynomial.sum(entry_count(one, axis_map) for one in tensor.dimensions),
    )
