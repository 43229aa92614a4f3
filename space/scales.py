"""Numbers that a class derives from a size, and how a student's weights and config make up for them.

A class that multiplies embeddings by √hidden would multiply those of a narrower student by less. The
factor is carried in the weights: embeddings times √(D/k), and, where the head is the same tensor, the
final norm divided by it. Multipliers that are fields of the config are rescaled there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from space.architecture import Architecture, Axis

if TYPE_CHECKING:
    from space.axis_map import AxisMap


@dataclass(frozen=True)
class Roles:
    """Names of the tensors through which scales are carried."""

    embedding: str
    head: str
    """The embedding's name where the two are tied."""
    final_norm: str | None


@dataclass(frozen=True)
class Scales:
    """By which powers of a size a class multiplies what it computes."""

    embedding: float = 0.0
    """Embeddings are multiplied by hidden to this power."""
    head: float = 0.0
    """Logits are multiplied by hidden to this power."""
    norm_offset: float = 0.0
    """The final norm multiplies by its weight plus this."""
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
    scales, roles = axis_map.scales, axis_map.roles
    ratio = axis_map.teacher.hidden / student.hidden
    if ratio == 1 or (not scales.embedding and not scales.head):
        return
    weights[roles.embedding] *= ratio**scales.embedding
    if roles.head != roles.embedding:
        weights[roles.head] *= ratio**scales.head
        return
    assert roles.final_norm is not None, "a tied head is scaled through the final norm"
    norm = weights[roles.final_norm]
    norm += scales.norm_offset
    norm *= ratio ** (scales.head - scales.embedding)
    norm -= scales.norm_offset
