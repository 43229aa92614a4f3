"""Intermediate states: the student's, mapped to the teacher's width, are drawn to the teacher's.

Worth it where layers are cut hard (arXiv 2407.14679, section 3 and table 17); ``studies/distillation`` has
what it is worth here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from evaluators.distillation.places import Kind, Place


class Closeness(StrEnum):
    """How states are compared."""

    COSINE = "cosine"
    """One minus the cosine."""
    MSE = "mse"
    """Squared difference, mean over the teacher's width, over the mean square of the teacher's state."""


@dataclass(frozen=True)
class Pair:
    """A place in the student and the one in the teacher that it is compared to."""

    student: Place
    teacher: Place


@dataclass(frozen=True)
class States:
    """Which states are compared, and how.

    Attributes:
        pairs: at least one.
        by: the measure.
    """

    pairs: tuple[Pair, ...]
    by: Closeness = Closeness.COSINE

    @property
    def of_student(self) -> list[Place]:
        """Where the student is listened to."""
        return [pair.student for pair in self.pairs]

    @property
    def of_teacher(self) -> list[Place]:
        """Where the teacher is listened to."""
        return [pair.teacher for pair in self.pairs]


def late_block(student_layers: int, teacher_layers: int) -> Pair:
    """The last block but two of both (arXiv 2407.14679, appendix A)."""
    return Pair(Place(Kind.BLOCK, max(0, student_layers - 3)), Place(Kind.BLOCK, max(0, teacher_layers - 3)))


def embedding() -> Pair:
    """What the first block is given, in both."""
    return Pair(Place(Kind.EMBEDDING), Place(Kind.EMBEDDING))


def late_attention(student_layers: int, teacher_layers: int) -> Pair:
    """The attention of the last block but two of both."""
    pair = late_block(student_layers, teacher_layers)
    return Pair(Place(Kind.ATTENTION, pair.student.layer), Place(Kind.ATTENTION, pair.teacher.layer))


class StatesLoss(nn.Module):
    """The learned linear maps of all pairs, from the student's width to the teacher's, and the loss.

    The maps are trained with the student and thrown away with this module.
    """

    def __init__(self, states: States, student_width: int, teacher_width: int) -> None:
        """Begin with maps that hand on what both have: the first dimensions.

        Args:
            states: which are compared.
            student_width: d.
            teacher_width: D.
        """
        super().__init__()
        self.states = states
        maps = [nn.Linear(student_width, teacher_width, bias=False) for _ in states.pairs]
        for one in maps:
            nn.init.eye_(one.weight)
        self.maps = nn.ModuleList(maps)

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """The sum over tokens of the mean over pairs.

        Args:
            student: (B, T, d) by place.
            teacher: (B, T, D) by place.
            mask: (B, T) bool, which tokens count.
        """
        terms = [
            (self._apart(one(student[str(pair.student)]), teacher[str(pair.teacher)]) * mask).sum()
            for pair, one in zip(self.states.pairs, self.maps, strict=True)
        ]
        return torch.stack(terms).mean()

    def _apart(self, mapped: Tensor, wanted: Tensor) -> Tensor:
        mapped, wanted = mapped.float(), wanted.float()
        if self.states.by is Closeness.COSINE:
            return 1 - nn.functional.cosine_similarity(mapped, wanted, dim=-1)
        return (mapped - wanted).square().mean(dim=-1) / wanted.square().mean(dim=-1).clamp(min=1e-12)


def chosen(names: Sequence[str], student_layers: int, teacher_layers: int) -> States | None:
    """The pairs with these names out of ``late``, ``embedding`` and ``attention``; None without any."""
    known = {
        "late": late_block(student_layers, teacher_layers),
        "embedding": embedding(),
        "attention": late_attention(student_layers, teacher_layers),
    }
    return States(tuple(known[name] for name in names)) if names else None
