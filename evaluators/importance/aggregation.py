"""From a (batch, sequence) grid of activations to one score a unit: streaming sums, nine ways.

Minitron (arXiv 2407.14679, section 2.2 and Table 13) takes absolute values, aggregates them first along
the sequence, then along the batch, each time by mean, L2 norm or variance. A block's aggregate along its
sequence does not depend on other blocks, so what is kept is one number a unit of the batch's aggregate:
in float64, and the same for every split of the blocks into batches.

What a routed expert reads is no sequence, so that ``aggregation`` does not apply: its squares are summed over
its tokens. So are those of the entries of heads. Layers are scored as in Minitron (arXiv 2407.14679, section
2.2).
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


class ActivationGrid:
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

    def merge(self, other: ActivationGrid) -> None:
        """Take in what another grid of the same aggregations has heard, on the same device."""
        assert self.parts.keys() == other.parts.keys()
        self.heard |= other.heard
        for aggregation, part in self.parts.items():
            part.merge(other.parts[aggregation])

    def score(self, aggregation: Aggregation) -> Tensor:
        """(units,) float64 on the host, over all blocks that were taken in."""
        return self.parts[aggregation].value.cpu()


#: States of no length have no direction; their cosine is 0.
_SHORTEST = 1e-16


class SumOfSquares:
    """A sum of squares by unit, kept in float64 on the device of what is taken in."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add_tokens(self, activations: Tensor) -> None:
        """Take in (..., units) activations: a² of each token."""
        self._add(activations.flatten(0, -2).float().square().sum(dim=0).double())

    def _add(self, squares: Tensor) -> None:
        self.total = squares if self.total is None else self.total + squares

    def merge(self, other: SumOfSquares) -> None:
        """Take in what another one has heard of other blocks."""
        if other.total is not None:
            self._add(other.total)

    @property
    def norm(self) -> Tensor:
        """(units,) float64: the L2 norm over all that was taken in."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sqrt().cpu()


class ExpertSquares:
    """The sum over tokens of a² for each neuron of each expert of a layer."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.total: Tensor | None = None

    def add(self, first: int, activations: Tensor) -> None:
        """Take in (e, n, neurons) activations of the e experts from ``first`` on; n may be 0."""
        sums = activations.float().square().sum(dim=1).double()
        if self.total is None:
            self.total = sums.new_zeros(self.experts, sums.shape[1])
        self.total[first : first + len(sums)] += sums

    def merge(self, other: ExpertSquares) -> None:
        """Take in what another one has heard of other blocks."""
        if other.total is not None:
            self.total = other.total if self.total is None else self.total + other.total

    @property
    def neurons(self) -> Tensor:
        """(E, I) float64: the L2 norm of each neuron over the tokens routed to its expert."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sqrt().cpu()

    @property
    def whole(self) -> Tensor:
        """(E,) float64: the L2 norm of all neurons together; it grows with size and with use."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sum(dim=-1).sqrt().cpu()


class BlockInfluence:
    """Block influence of a layer: 1 − mean cosine between its input and its output (section 2.2)."""

    def __init__(self) -> None:
        self.cosines: Tensor | None = None
        self.tokens = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Take in (B, T, D) states at the layer's input and output."""
        lengths = [
            torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32) for states in (before, after)
        ]
        dots = torch.linalg.vecdot(before.float(), after.float())
        cosine = dots / (lengths[0] * lengths[1]).clamp_min(_SHORTEST)
        total = cosine.double().sum()
        self.cosines = total if self.cosines is None else self.cosines + total
        self.tokens += cosine.numel()

    def merge(self, other: BlockInfluence) -> None:
        """Take in what another one has heard of other blocks."""
        if other.cosines is not None:
            self.cosines = other.cosines if self.cosines is None else self.cosines + other.cosines
            self.tokens += other.tokens

    @property
    def value(self) -> float:
        """The influence over all tokens seen."""
        assert self.cosines is not None, "nothing was listened to"
        return 1 - float(self.cosines) / self.tokens
