"""Streaming sums behind the scores: whatever the split of the calibration set, the same totals.

What a routed expert reads is no sequence, so that ``aggregation`` does not apply: its squares are summed over
its tokens. So are those of the entries of heads. Layers are scored as in Minitron (arXiv 2407.14679, section
2.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: States of no length have no direction; their cosine is 0.
_SHORTEST = 1e-16


class Squares:
    """A sum of squares by unit, kept in float64 on the device of what is taken in."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add_tokens(self, activations: Tensor) -> None:
        """Take in (..., units) activations: a² of each token."""
        self._add(activations.flatten(0, -2).float().square().sum(dim=0).double())

    def _add(self, squares: Tensor) -> None:
        self.total = squares if self.total is None else self.total + squares

    def merge(self, other: Squares) -> None:
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


class Influence:
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

    def merge(self, other: Influence) -> None:
        """Take in what another one has heard of other blocks."""
        if other.cosines is not None:
            self.cosines = other.cosines if self.cosines is None else self.cosines + other.cosines
            self.tokens += other.tokens

    @property
    def value(self) -> float:
        """The influence over all tokens seen."""
        assert self.cosines is not None, "nothing was listened to"
        return 1 - float(self.cosines) / self.tokens
