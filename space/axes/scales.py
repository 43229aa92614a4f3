"""Numbers that a class derives from a size, and how a student's weights and config make up for them.

A class that multiplies embeddings by √hidden would multiply those of a narrower student by less. The
factor is carried in the weights: embeddings times √(D/k), and, where the head is the same tensor, the
final norm divided by it. Multipliers that are fields of the config are rescaled there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from space.axes.architecture import Architecture, Axis
from space.axes.layout import Each, Fixed, Layout, Together, prefix

if TYPE_CHECKING:
    from space.axes.axis_map import AxisMap


def starred(name: str) -> str:
    """A tensor's name with every number in it starred: the same for all layers."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)


@dataclass(frozen=True)
class Roles:
    """Names of the tensors through which scales are carried."""

    embedding: str
    head: str
    """The embedding's name where the two are tied."""
    final_norm: str | None
    final_bias: str | None = None
    """The final norm's bias, where it has one."""


@dataclass(frozen=True)
class Scales:
    """By which powers of a size a class multiplies what it computes."""

    embedding: float = 0.0
    """Embeddings are multiplied by hidden to this power."""
    head: float = 0.0
    """Logits are multiplied by hidden to this power."""
    norm_offset: float = 0.0
    """The final norm multiplies by its weight plus this."""
    queries: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Where attention divides by the root of a head size that is cut: the dimensions (names with numbers
    starred) that hold queries, and which of the parts for each head they are."""
    rescaled: Mapping[str, tuple[Axis, float]] = field(default_factory=dict)
    """Config fields that have to grow with a power of a size for the function to stay the same."""

    def fields(self, axis_map: AxisMap, student: Architecture) -> dict[str, float]:
        """The rescaled fields of a student's config."""
        return {
            name: getattr(axis_map.config, name) * (student[axis] / axis_map.teacher[axis]) ** power
            for name, (axis, power) in self.rescaled.items()
        }


def carried(weights: dict[str, Tensor], axis_map: AxisMap, student: Architecture) -> None:
    """Change a student's weights so that what its class derives from its size changes nothing.

    Args:
        weights: the student's, by name; changed in place.
        axis_map: the teacher's.
        student: the student's sizes.
    """
    if student.head_dim != axis_map.teacher.head_dim:
        _carry_queries(weights, axis_map, student)
    scales, roles = axis_map.scales, axis_map.roles
    ratio = axis_map.teacher.hidden / student.hidden
    if ratio == 1 or (not scales.embedding and not scales.head):
        return
    weights[roles.embedding].mul_(ratio**scales.embedding)
    if roles.head != roles.embedding:
        weights[roles.head].mul_(ratio**scales.head)
        return
    assert roles.final_norm is not None, "a tied head is scaled through the final norm"
    factor = ratio ** (scales.head - scales.embedding)
    norm = weights[roles.final_norm]
    norm.add_(scales.norm_offset).mul_(factor).sub_(scales.norm_offset)
    if roles.final_bias is not None:
        weights[roles.final_bias].mul_(factor)


def _carry_queries(weights: dict[str, Tensor], axis_map: AxisMap, student: Architecture) -> None:
    """Queries times √(d'/d): attention divides by √d' where the teacher divides by √d."""
    factor = (student.head_dim / axis_map.teacher.head_dim) ** 0.5
    layouts = {starred(tensor.name): tensor.dimensions for tensor in axis_map.tensors}
    for name, values in weights.items():
        for (where, place), part in axis_map.scales.queries.items():
            if starred(name) == where:
                layout = layouts[where][place]
                mask = prefix(_of_part(layout, part), 0, layout, student, axis_map.teacher)
                shape = [-1 if dimension == place else 1 for dimension in range(values.ndim)]
                values.mul_((1 + (factor - 1) * mask).view(shape).to(values))


def _of_part(layout: Layout, part: int) -> Tensor:
    """(length,) 1 for the entries of one of the parts that a head has in a tensor, else 0."""
    match layout:
        case Fixed(length):
            return torch.ones(length)
        case Together(parts):
            return torch.cat([torch.full((p.length,), float(n == part)) for n, p in enumerate(parts)])
        case Each(None, units, inner):
            return (torch.arange(units) == part).float().repeat_interleave(inner.length)
        case Each(_, units, inner):
            return _of_part(inner, part).repeat(units)
