"""A training batch: tokens beside what the teacher says of them, and where each loss counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """Every logit.

    Attributes:
        logits: (n, V) float32.
    """

    logits: Tensor


@dataclass(frozen=True)
class Sparse:
    """A few next tokens.

    Attributes:
        ids: (n, K) int64 token numbers.
        weights: (n, K) float32, of each token's sum 1; 0 where there is none.
        entropy: (n,) float32 nats, of the distribution that the weights stand for.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor


Predictions = Dense | Sparse


#: Fills the end of a block that is shorter than the others.
PADDING = -1


@dataclass(frozen=True)
class Batch:
    """Some blocks, on the device.

    Attributes:
        tokens: (B, T) int64; ``PADDING`` behind the end of a shorter block.
        targets: each (B, T, …), what the teacher says in the form of its targets; nothing without a teacher.
        states: (B, T, D) of the teacher by the name of their place, see ``places``.
    """

    tokens: Tensor
    targets: tuple[Tensor, ...] = ()
    states: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: where a token is, and so a distribution over the next one."""
        return self.tokens >= 0

    @property
    def next_tokens(self) -> Tensor:
        """(B, T) int64 the token after each, ``PADDING`` where there is none.

        Documents lie end to end in a block, so the separator is predicted at the end of each, and the first
        token of the next from the separator: as the teacher was trained, and as losses are validated.
        """
        next_tokens = self.tokens.roll(-1, dims=1)
        next_tokens[:, -1] = PADDING
        return next_tokens


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

    def predictions(self, *targets: Tensor) -> Predictions | None:
        """What the teacher says of n tokens, from slices (n, …) of a batch's ``targets``; None without one."""


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
    def description(self) -> Mapping[str, str | int | float]:
        """Its name and parameters; records of others are others."""

    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """What is kept of a block, on the host.

        Args:
            final: (T, D) the teacher's final states.
            number: of the block.
        """

    def collate(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Each (B, T, …): what ``Batch.targets`` holds, from the records of B blocks."""

    def predictions(self, *targets: Tensor) -> Predictions:
        """What the teacher says of n tokens, from slices (n, …) of ``targets``."""
