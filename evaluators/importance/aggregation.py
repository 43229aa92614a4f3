"""From a (batch, sequence) grid of activations to one score a unit: nine ways, streaming.

Minitron (arXiv 2407.14679, section 2.2 and Table 13) takes absolute values, aggregates them first along
the sequence, then along the batch, each time by mean, L2 norm or variance. A block's aggregate along its
sequence does not depend on other blocks, so what is kept is one number a unit of the batch's aggregate:
in float64, and the same for every split of the blocks into batches.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evaluators.importance.method import Aggregate


class Aggregation(NamedTuple):
    """How a grid becomes one number: first along the sequence, then along the batch."""

    batch: Aggregate
    sequence: Aggregate


#: Minitron's choice.
L2_OF_MEANS = Aggregation(Aggregate.L2, Aggregate.MEAN)
ALL = tuple(Aggregation(batch, sequence) for batch in Aggregate for sequence in Aggregate)


def along_sequence(activations: Tensor, sequence: Aggregate) -> Tensor:
    """(B, units) float64: each block's aggregate of |a|.

    Args:
        activations: (B, T, units) of any floating type; L2 and mean are summed in float32.
        sequence: (1/T) Σ|a|, √Σa², or (1/T) Σ(|a| − mean)².
    """
    match sequence:
        case Aggregate.MEAN:
            return activations.abs().mean(dim=1, dtype=torch.float32).double()
        case Aggregate.L2:
            norms: Tensor = torch.linalg.vector_norm(activations, dim=1, dtype=torch.float32)
            return norms.double()
        case Aggregate.VAR:
            return activations.abs().double().var(dim=1, correction=0)


class OverBlocks(Protocol):
    """An aggregate along the batch, of as many blocks as have come."""

    def add(self, values: Tensor) -> None:
        """Take in (B, units) float64 values, not negative: one row a block."""

    def merge(self, other: OverBlocks) -> None:
        """Take in what another of the same class has taken in, on the same device."""

    @property
    def value(self) -> Tensor:
        """(units,) float64."""


class Sum:
    """A sum over blocks, and their number."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.blocks = 0

    def add(self, values: Tensor) -> None:
        """Take in (B, units) float64."""
        self._take(self._terms(values).sum(dim=0), len(values))

    def merge(self, other: OverBlocks) -> None:
        """Take in another's sum."""
        assert isinstance(other, type(self))
        if other.total is not None:
            self._take(other.total, other.blocks)

    def _terms(self, values: Tensor) -> Tensor:
        return values

    def _take(self, total: Tensor, blocks: int) -> None:
        self.total = total if self.total is None else self.total + total
        self.blocks += blocks


class Mean(Sum):
    """(1/N) Σ|x|."""

    @property
    def value(self) -> Tensor:
        """(units,) float64."""
        assert self.total is not None, "nothing was listened to"
        return self.total / self.blocks


class L2(Sum):
    """√Σx²."""

    def _terms(self, values: Tensor) -> Tensor:
        return values.square()

    @property
    def value(self) -> Tensor:
        """(units,) float64."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sqrt()


class Variance:
    """(1/N) Σ(x − x̄)²: of one block 0.

    Means and sums of squared deviations are merged as in Chan, Golub and LeVeque (1983), so that no digits
    cancel where the mean is much larger than what is around it.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.deviations: Tensor | None = None
        self.blocks = 0

    def add(self, values: Tensor) -> None:
        """Take in (B, units) float64."""
        mean = values.mean(dim=0)
        self._take(mean, (values - mean).square().sum(dim=0), len(values))

    def merge(self, other: OverBlocks) -> None:
        """Take in another's blocks."""
        assert isinstance(other, Variance)
        if other.mean is not None and other.deviations is not None:
            self._take(other.mean, other.deviations, other.blocks)

    def _take(self, mean: Tensor, deviations: Tensor, blocks: int) -> None:
        if self.mean is None or self.deviations is None:
            self.mean, self.deviations, self.blocks = mean, deviations, blocks
            return
        whole = self.blocks + blocks
        apart = mean - self.mean
        self.deviations = self.deviations + deviations + apart.square() * (self.blocks * blocks / whole)
        self.mean = self.mean + apart * (blocks / whole)
        self.blocks = whole

    @property
    def value(self) -> Tensor:
        """(units,) float64."""
        assert self.deviations is not None, "nothing was listened to"
        return self.deviations / self.blocks


def _over_blocks(batch: Aggregate) -> OverBlocks:
    match batch:
        case Aggregate.MEAN:
            return Mean()
        case Aggregate.L2:
            return L2()
        case Aggregate.VAR:
            return Variance()


class Grid:
    """The units of one place in the teacher, in every aggregation that is wanted, from one pass."""

    def __init__(self, aggregations: Collection[Aggregation] = (L2_OF_MEANS,)) -> None:
        self.parts = {aggregation: _over_blocks(aggregation.batch) for aggregation in aggregations}
        self.heard = False

    def add_blocks(self, activations: Tensor) -> None:
        """Take in (B, T, units) activations."""
        self.heard = True
        by_block: dict[Aggregate, Tensor] = {}
        for aggregation, part in self.parts.items():
            sequence = aggregation.sequence
            if sequence not in by_block:
                by_block[sequence] = along_sequence(activations, sequence)
            part.add(by_block[sequence])

    def merge(self, other: Grid) -> None:
        """Take in what another grid of the same aggregations has heard, on the same device."""
        assert self.parts.keys() == other.parts.keys()
        self.heard |= other.heard
        for aggregation, part in self.parts.items():
            part.merge(other.parts[aggregation])

    def score(self, aggregation: Aggregation) -> Tensor:
        """(units,) float64 on the host, over all blocks that were taken in."""
        return self.parts[aggregation].value.cpu()
