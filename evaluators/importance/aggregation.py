"""Streaming statistics that reduce activations to one score per unit, expert or layer.

Minitron (arXiv 2407.14679, section 2.2 and Table 13) takes absolute values and aggregates them first along
the sequence, then along the batch, each time by mean, L2 norm or variance. A block's aggregate along its
sequence does not depend on other blocks, so only the running aggregate along the batch is kept: in float64,
and equal up to rounding for every split of the blocks into batches.

The tokens routed to an expert form no sequence, so its squares are summed over its tokens whatever the
aggregation. So are those of the entries of heads. Layers have block influence (section 2.2).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evaluators.importance.method import Aggregate
from evaluators.importance.precision import full_precision


class Aggregation(NamedTuple):
    """How a (batch, sequence) grid becomes one number: first along the sequence, then along the batch."""

    batch: Aggregate
    sequence: Aggregate


#: Minitron's choice.
L2_OF_MEANS = Aggregation(Aggregate.L2, Aggregate.MEAN)
ALL = tuple(Aggregation(batch, sequence) for batch in Aggregate for sequence in Aggregate)


def along_sequence(activations: Tensor, sequence: Aggregate) -> Tensor:
    """Return (B, units) float64: each block's aggregate of |a| along the sequence.

    Args:
        activations: (B, T, units) of any floating type; L2 and mean are summed in float32.
        sequence: MEAN (1/T) Σ|a|, L2 √Σa², or VAR (1/T) Σ(|a| − mean)².
    """
    match sequence:
        case Aggregate.MEAN:
            return activations.abs().mean(dim=1, dtype=torch.float32).double()
        case Aggregate.L2:
            norms: Tensor = torch.linalg.vector_norm(activations, dim=1, dtype=torch.float32)
            return norms.double()
        case Aggregate.VAR:
            return activations.abs().double().var(dim=1, correction=0)


class BatchAggregate(Protocol):
    """A running aggregate along the batch, over the blocks added so far."""

    def add(self, values: Tensor) -> None:
        """Add (B, units) float64 values, not negative: one row per block."""

    def merge(self, other: BatchAggregate) -> None:
        """Add the blocks of another aggregate of the same class on the same device."""

    @property
    def value(self) -> Tensor:
        """The aggregate over all blocks, (units,) float64."""


class Sum:
    """A sum over blocks, and the number of blocks; base class of ``Mean`` and ``L2``."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.blocks = 0

    def add(self, values: Tensor) -> None:
        """Add (B, units) float64 values."""
        self._accumulate(self._terms(values).sum(dim=0), len(values))

    def merge(self, other: BatchAggregate) -> None:
        """Add another sum."""
        assert isinstance(other, type(self))
        if other.total is not None:
            self._accumulate(other.total, other.blocks)

    def _terms(self, values: Tensor) -> Tensor:
        return values

    def _accumulate(self, total: Tensor, blocks: int) -> None:
        self.total = total if self.total is None else self.total + total
        self.blocks += blocks


class Mean(Sum):
    """(1/N) Σ|x|."""

    @property
    def value(self) -> Tensor:
        """The mean, (units,) float64."""
        assert self.total is not None, "nothing was listened to"
        return self.total / self.blocks


class L2(Sum):
    """√Σx²."""

    def _terms(self, values: Tensor) -> Tensor:
        return values.square()

    @property
    def value(self) -> Tensor:
        """The norm, (units,) float64."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sqrt()


class Variance:
    """(1/N) Σ(x − x̄)²; 0 for a single block.

    Means and sums of squared deviations are merged as in Chan, Golub and LeVeque (1983), which avoids
    cancellation where the mean is much larger than the deviations.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.deviations: Tensor | None = None
        self.blocks = 0

    def add(self, values: Tensor) -> None:
        """Add (B, units) float64 values."""
        mean = values.mean(dim=0)
        self._accumulate(mean, (values - mean).square().sum(dim=0), len(values))

    def merge(self, other: BatchAggregate) -> None:
        """Add the blocks of another variance."""
        assert isinstance(other, Variance)
        if other.mean is not None and other.deviations is not None:
            self._accumulate(other.mean, other.deviations, other.blocks)

    def _accumulate(self, mean: Tensor, deviations: Tensor, blocks: int) -> None:
        if self.mean is None or self.deviations is None:
            self.mean, self.deviations, self.blocks = mean, deviations, blocks
            return
        whole = self.blocks + blocks
        difference = mean - self.mean
        self.deviations = self.deviations + deviations + difference.square() * (self.blocks * blocks / whole)
        self.mean = self.mean + difference * (blocks / whole)
        self.blocks = whole

    @property
    def value(self) -> Tensor:
        """The variance, (units,) float64."""
        assert self.deviations is not None, "nothing was listened to"
        return self.deviations / self.blocks


def _batch_aggregate(batch: Aggregate) -> BatchAggregate:
    match batch:
        case Aggregate.MEAN:
            return Mean()
        case Aggregate.L2:
            return L2()
        case Aggregate.VAR:
            return Variance()


class ActivationGrid:
    """The activations of one module, aggregated in several ways in the same pass."""

    def __init__(self, aggregations: Collection[Aggregation] = (L2_OF_MEANS,)) -> None:
        self.parts = {aggregation: _batch_aggregate(aggregation.batch) for aggregation in aggregations}
        self.has_data = False

    def add_blocks(self, activations: Tensor) -> None:
        """Add (B, T, units) activations."""
        self.has_data = True
        by_block: dict[Aggregate, Tensor] = {}
        for aggregation, part in self.parts.items():
            sequence = aggregation.sequence
            if sequence not in by_block:
                by_block[sequence] = along_sequence(activations, sequence)
            part.add(by_block[sequence])

    def merge(self, other: ActivationGrid) -> None:
        """Add the blocks of another grid with the same aggregations on the same device."""
        assert self.parts.keys() == other.parts.keys()
        self.has_data |= other.has_data
        for aggregation, part in self.parts.items():
            part.merge(other.parts[aggregation])

    def score(self, aggregation: Aggregation) -> Tensor:
        """Return (units,) float64 scores over all blocks, on the CPU."""
        return self.parts[aggregation].value.cpu()


#: Lower bound of the product of two norms, so that states of norm 0 have cosine 0.
_MIN_NORM = 1e-16


class SumOfSquares:
    """A sum of squares per unit, in float64 on the device of the activations."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add_tokens(self, activations: Tensor) -> None:
        """Add a² of (..., units) activations."""
        self._add(activations.flatten(0, -2).float().square().sum(dim=0).double())

    def _add(self, squares: Tensor) -> None:
        self.total = squares if self.total is None else self.total + squares

    def merge(self, other: SumOfSquares) -> None:
        """Add the sum over other blocks."""
        if other.total is not None:
            self._add(other.total)

    @property
    def norm(self) -> Tensor:
        """The L2 norm over all tokens, (units,) float64 on the CPU."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sqrt().cpu()


class ExpertSquares:
    """The sum over tokens of a² of each neuron of each expert of a layer."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.total: Tensor | None = None

    def add(self, first: int, activations: Tensor) -> None:
        """Add (e, n, I) activations of n tokens in each of the e experts from ``first`` on; n may be 0."""
        sums = activations.float().square().sum(dim=1).double()
        if self.total is None:
            self.total = sums.new_zeros(self.experts, sums.shape[1])
        self.total[first : first + len(sums)] += sums

    def merge(self, other: ExpertSquares) -> None:
        """Add the sums over other blocks."""
        if other.total is not None:
            self.total = other.total if self.total is None else self.total + other.total

    @property
    def neurons(self) -> Tensor:
        """The L2 norm of each neuron over the tokens routed to its expert, (E, I) float64."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sqrt().cpu()

    @property
    def whole(self) -> Tensor:
        """The L2 norm over all neurons and tokens of each expert, (E,) float64; it grows with use."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sum(dim=-1).sqrt().cpu()


class BlockInfluence:
    """Block influence of a layer: 1 − mean cosine between its input and its output (section 2.2)."""

    def __init__(self) -> None:
        self.cosines: Tensor | None = None
        self.tokens = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add (B, T, D) states at the layer's input and output."""
        lengths = [
            torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32) for states in (before, after)
        ]
        with full_precision(before):
            dots = torch.linalg.vecdot(before.float(), after.float())
        cosine = dots / (lengths[0] * lengths[1]).clamp_min(_MIN_NORM)
        total = cosine.double().sum()
        self.cosines = total if self.cosines is None else self.cosines + total
        self.tokens += cosine.numel()

    def merge(self, other: BlockInfluence) -> None:
        """Add the cosines over other blocks."""
        if other.cosines is not None:
            self.cosines = other.cosines if self.cosines is None else self.cosines + other.cosines
            self.tokens += other.tokens

    @property
    def value(self) -> float:
        """The block influence over all tokens."""
        assert self.cosines is not None, "nothing was listened to"
        return 1 - float(self.cosines) / self.tokens
