"""How many inputs the matrices have whose moments repairs need, known before any pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from space.axes.axis_map import BUILD_ERRORS, AxisMap, MappedTensor, build
from space.axes.layout import Concatenated
from space.cutting.moments import expert_dimension, reading_dimensions


@dataclass(frozen=True)
class ReadSize:
    """A matrix that reads neurons or heads."""

    layer: int | None
    matrices: int
    """1, or E where each of E experts has one."""
    inputs: int
    """n."""

    @property
    def values(self) -> int:
        """Of its moments."""
        return self.matrices * self.inputs**2


def read_sizes(axis_map: AxisMap) -> list[ReadSize]:
    """Return the matrices that read neurons or heads; of classes of their own kind, all that may."""
    try:
        model: nn.Module | None = build(axis_map.config)
    except BUILD_ERRORS:
        model = None
    found = []
    for tensor in axis_map.tensors:
        experts = expert_dimension(tensor)
        matrices = 1 if experts is None else tensor.dimensions[experts].length
        written = None if model is None else _output(model, tensor)
        for dim in reading_dimensions(tensor):
            if dim != written and not isinstance(tensor.dimensions[dim], Concatenated):
                found.append(ReadSize(tensor.layer, matrices, tensor.dimensions[dim].length))
    return found


def _output(model: nn.Module, tensor: MappedTensor) -> int | None:
    """Return the dimension of a linear module's output; None for other modules."""
    module = model.get_submodule(tensor.module)
    if isinstance(module, Conv1D):
        return len(tensor.dimensions) - 1
    return 0 if isinstance(module, nn.Linear) else None


def moment_bytes(axis_map: AxisMap) -> int:
    """Return the bytes of all sums in float64: 8 n² for each matrix that reads n neurons or heads."""
    return sum(8 * size.values for size in read_sizes(axis_map))
