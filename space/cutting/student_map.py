"""The map of a student, drawn from its teacher's: what asking the class again would find, for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap, Tensor, student_name
from space.axes.layout import Each, Fixed, Layout, Together, kept
from space.cutting.extraction import student_config


def student_map(axis_map: AxisMap, architecture: Architecture, layers: Sequence[int]) -> AxisMap:
    """The map of a student, so that it can be ranked and cut as a teacher is.

    Args:
        axis_map: the teacher's.
        architecture: the student's sizes.
        layers: the teacher's layers that it has, ascending.

    Raises:
        StrictDataclassError: the class does not allow these sizes together; other classes raise
            ValueError and its kin.
    """
    names = {tensor.name: student_name(tensor, axis_map, layers) for tensor in axis_map.tensors}
    tensors = tuple(
        Tensor(
            name,
            tuple(_shrunk(layout, architecture, axis_map.teacher) for layout in tensor.dimensions),
            None if tensor.layer is None else layers.index(tensor.layer),
        )
        for tensor in axis_map.tensors
        if (name := names[tensor.name]) is not None
    )
    kinds = [axis_map.kinds[layer] for layer in layers]
    characters = axis_map.characters
    return replace(
        axis_map,
        config=student_config(axis_map, architecture, layers),
        teacher=architecture,
        head_dim=architecture.head_dim or axis_map.head_dim,
        tensors=tensors,
        kinds=tuple(list(dict.fromkeys(kinds)).index(kind) for kind in kinds),
        buffers=frozenset(name for before in axis_map.buffers if (name := names[before])),
        characters=tuple(characters[layer] for layer in layers) if characters else (),
    )


def _shrunk(layout: Layout, student: Architecture, teacher: Architecture) -> Layout:
    match layout:
        case Fixed():
            return layout
        case Together(parts):
            return Together(tuple(_shrunk(part, student, teacher) for part in parts))
        case Each(axis, units, inner):
            return Each(axis, kept(axis, units, student, teacher), _shrunk(inner, student, teacher))
