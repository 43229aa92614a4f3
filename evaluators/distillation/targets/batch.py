"""A training batch: tokens beside what the teacher says of them, and where each loss counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from evaluators.distillation.answer import Answer

#: Fills the end of a block that is shorter than the others.
PADDING = -1


@dataclass(frozen=True)
class Batch:
    """Some blocks, on the device.

    Attributes:
        tokens: (B, T) int64; ``PADDING`` behind the end of a shorter block.
        said: each (B, T, …), what the teacher says in the form of its targets; nothing without a teacher.
        states: (B, T, D) of the teacher by the name of their place, see ``places``.
    """

    tokens: Tensor
    said: tuple[Tensor, ...] = ()
    states: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: where a token is, and so a distribution over the next one."""
        return self.tokens >= 0

    @property
    def nexts(self) -> Tensor:
        """(B, T) int64 the token after each, ``PADDING`` where there is none.

        Documents lie end to end in a block, so the separator is predicted at the end of each, and the first
        token of the next from the separator: as the teacher was trained, and as losses are validated.
        """
        nexts = self.tokens.roll(-1, dims=1)
        nexts[:, -1] = PADDING
        return nexts


class Count(NamedTuple):
    """Over how many tokens a loss is a mean."""

    positions: int
    """Where the teacher says something."""
    predicted: int
    """Whose next token is known."""

    @classmethod
    def of(cls, tokens: Tensor) -> Count:
        """Of (B, T) token numbers: every token counts, but the last of each block predicts none."""
        return cls(int((tokens >= 0).sum()), int((tokens[:, 1:] >= 0).sum()))


class Targets(Protocol):
    """A source of training batches."""

    tokens: Tensor
    """(N, T) of all blocks, on the host."""

    @property
    def blocks(self) -> int:
        """N."""

    def batch(self, numbers: Tensor) -> Batch:
        """The blocks with these numbers."""

    def answer(self, *said: Tensor) -> Answer | None:
        """What the teacher says of n tokens, from slices (n, …) of a batch's ``said``; None without one."""
