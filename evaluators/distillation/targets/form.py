"""What targets on disk have to know of their form: what is kept of a block, and what is read out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from torch import Tensor

from evaluators.distillation.answer import Answer


class FormName(StrEnum):
    """How a teacher's targets are had."""

    HIDDEN = "hidden"
    """Its final states are kept; its head is applied to them again."""
    SAMPLED = "sampled"
    """A few next tokens of each, drawn from its distribution, are kept."""
    TOP_K = "top-k"
    """Its most probable next tokens are kept."""
    LIVE = "live"
    """Nothing is kept: it runs beside the student."""


class Form(Protocol):
    """One form of targets."""

    @property
    def about(self) -> Mapping[str, str | int | float]:
        """Its name and parameters; records of others are others."""

    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """What is kept of a block, on the host.

        Args:
            final: (T, D) the teacher's final states.
            number: of the block.
        """

    def said(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Each (B, T, …): what ``Batch.said`` holds, from the records of B blocks."""

    def answer(self, *said: Tensor) -> Answer:
        """What the teacher says of n tokens, from slices (n, …) of ``said``."""
