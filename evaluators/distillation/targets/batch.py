"""Training batches: token blocks with the teacher's targets, and the protocols of their sources and forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """The teacher's full logits.

    Attributes:
        logits: (n, V) float32.
    """

    logits: Tensor


@dataclass(frozen=True)
class Sparse:
    """A sparse distribution: a few next tokens per position with their weights.

    Attributes:
        ids: (n, K) int64 token ids.
        weights: (n, K) float32; each row sums to 1, padding has weight 0.
        entropy: (n,) float32, in nats, of the distribution that the weights approximate.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor


Predictions = Dense | Sparse


#: Token id that pads a block shorter than the others.
PADDING = -1


@dataclass(frozen=True)
class Batch:
    """A batch of blocks, on the device.

    Attributes:
        tokens: (B, T) int64; ``PADDING`` after the end of a shorter block.
        targets: tensors (B, T, …) in the layout of the targets' form; empty without a teacher. What they hold
            of a token that is not learnt does not matter.
        states: the teacher's intermediate states (B, T, D), keyed by ``str(StatePlace)``.
        learnt: (B, T) bool, True at each token whose next one is to be learnt; None: all are.
    """

    tokens: Tensor
    targets: tuple[Tensor, ...] = ()
    states: Mapping[str, Tensor] = field(default_factory=dict)
    learnt: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: True where there is a token, and so a distribution over the next one, to be learnt."""
        present = self.tokens >= 0
        return present if self.learnt is None else present & self.learnt

    @property
    def next_tokens(self) -> Tensor:
        """(B, T) int64: the token after each, ``PADDING`` where there is none or it is not learnt.

        A block holds documents end to end. So the separator is predicted at the end of each document, and the
        first token of the next from the separator, as in the teacher's training and in validation.
        """
        next_tokens = self.tokens.roll(-1, dims=1)
        next_tokens[:, -1] = PADDING
        return next_tokens if self.learnt is None else next_tokens.masked_fill(~self.learnt, PADDING)


class Count(NamedTuple):
    """Numbers of tokens over which the loss terms are averaged; 0 where a step has nothing to learn."""

    positions: int
    """Tokens at which the student learns what the teacher predicts."""
    predicted: int
    """Tokens whose next token is known and learnt."""

    @classmethod
    def of(cls, tokens: Tensor, learnt: Tensor | None = None) -> Count:
        """Count (B, T) token ids: each is a position, but the last of a block has no next token.

        Args:
            tokens: ``PADDING`` after the end of a shorter block.
            learnt: (B, T) bool, False at what does not count; None: all counts.
        """
        batch = Batch(tokens, learnt=learnt)
        return cls(int(batch.mask.sum()), int((batch.next_tokens >= 0).sum()))


def rows(learnt: Tensor | None, numbers: Tensor, device: torch.device | None = None) -> Tensor | None:
    """Return the rows of (N, T) ``learnt`` with these numbers, on the device; None if all is learnt."""
    return None if learnt is None else learnt[numbers].to(device)


class Targets(Protocol):
    """A source of training batches."""

    tokens: Tensor
    """(N, T) token ids of all blocks, on the host."""
    learnt: Tensor | None
    """(N, T) bool on the host, True at each token whose next one is to be learnt; None: all are."""

    @property
    def blocks(self) -> int:
        """N, the number of blocks."""

    def on_device(self) -> AbstractContextManager[None]:
        """Within the context, which is that of a training, what is needed of the teacher is on the device."""

    def batch(self, numbers: Tensor) -> Batch:
        """Return the blocks with these numbers."""

    def predictions(self, *targets: Tensor) -> Predictions | None:
        """Return the teacher's predictions for n tokens; None without a teacher.

        Args:
            targets: slices (n, …) of ``Batch.targets``.
        """


class FormName(StrEnum):
    """How the teacher's targets are obtained."""

    HIDDEN = "hidden"
    """Cache the final states; apply the teacher's head to them again in training."""
    SAMPLED = "sampled"
    """Cache a few next tokens per position, drawn from the teacher's distribution."""
    TOP_K = "top-k"
    """Cache the most probable next tokens."""
    LIVE = "live"
    """Cache nothing: run the teacher beside the student."""


class Form(Protocol):
    """One form in which targets are cached."""

    @property
    def description(self) -> Mapping[str, str | int | float]:
        """Name and parameters of the form; records with another description are not reused."""

    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """Return the tensors to store for a block, on the host.

        Args:
            final: (n, D) the teacher's final states at the tokens whose next one is to be learnt.
            number: number of the block.
        """

    def collate(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """Collate the records of blocks, end to end, into tensors (n, …): the learnt of ``Batch.targets``."""

    def predictions(self, *targets: Tensor) -> Predictions:
        """Return the teacher's predictions for n tokens, from slices (n, …) of ``Batch.targets``."""
