"""How candidates differ in what they gain from rung to rung, and what that says of what they gain next.

Everything is in u, the logarithm of tokens that ``learning_law`` explains. A step is what log(L - E)
changes by between two neighbouring rungs of a candidate. Steps of one kind (all from one rung to one other)
share a mean, which is left free here. About it a candidate has a slope of its own, and walks at random; and
in the first step, from 0 tokens, it recovers from the cut by more or less than others. All are Gaussian, with
variances told over the walk's in an e-fold of tokens; Z pairs of them, each with its t₀, are done at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Z ways for candidates to differ: t₀ in tokens, then variances over that of the walk."""

    turn: Array
    slope: Array
    repair: Array

    def ways(self, steps: Array) -> Array:
        """(Z, K) in u, of (K, 2) steps given by their ends in tokens."""
        ways: Array = np.log1p(steps[:, 1] / self.turn[:, None]) - np.log1p(steps[:, 0] / self.turn[:, None])
        return ways

    def walk(self, one: Array, other: Array) -> Array:
        """(Z, K, M) covariance of (K, 2) and (M, 2) steps of one walk: what of u they have in common."""
        (start, end), (begin, finish) = one.T[:, :, None], other.T
        turn = self.turn[:, None, None]
        shared = np.log1p(np.minimum(end, finish) / turn) - np.log1p(np.maximum(start, begin) / turn)
        walk: Array = np.maximum(shared, 0)
        return walk

    def own(self, one: Array, other: Array) -> Array:
        """(Z, K, M) covariance of steps of one candidate, about the means of their kinds."""
        first = (one[:, 0] == 0)[:, None] & (other[:, 0] == 0)
        slope = self.slope[:, None, None] * self.ways(one)[:, :, None] * self.ways(other)[:, None]
        own: Array = self.walk(one, other) + slope + self.repair[:, None, None] * first
        return own


@dataclass(frozen=True)
class Alike:
    """n candidates that were seen at the same rungs."""

    members: list[int]
    steps: Array
    """(K, 2) ends in tokens."""
    kinds: list[int]
    """(K,) of the steps, from 0 to G - 1."""
    excess: Array
    """(n, K + 1, E) log(L - E) at every rung, E on a grid."""
    ahead: Array
    """(1, 2) the step that is forecast."""

    @property
    def change(self) -> Array:
        """(n, K, E) of log(L - E) in each step."""
        return np.diff(self.excess, axis=1)


@dataclass(frozen=True)
class Scatter:
    """Steps split into the means of G kinds and what candidates do for themselves."""

    means: Array
    """(Z, G, E)"""
    uncertainty: Array
    """(Z, G, G) of the means, over the walk's variance."""
    squares: Array
    """(Z, E) weighted, about the means."""
    log_determinant: Array
    """(Z,) of the covariance and of the means' precision, for the restricted likelihood."""


def scatter(groups: Sequence[Alike], kinds: int, spread: Spread) -> Scatter:
    """Split the steps of all, by generalised least squares."""
    number, floors = len(spread.turn), groups[0].excess.shape[2]
    precision, pull = np.zeros((number, kinds, kinds)), np.zeros((number, kinds, floors))
    squares, log_determinant = np.zeros((number, floors)), np.zeros(number)
    for group in groups:
        covariance = spread.own(group.steps, group.steps)
        inverse, kind = inverse_of(covariance), np.ix_(range(number), group.kinds, group.kinds)
        precision[kind] += len(group.members) * inverse
        pull[:, group.kinds] += inverse @ group.change.sum(0)
        moments = np.einsum("nke,nle->kle", group.change, group.change)
        squares += np.einsum("zkl,kle->ze", inverse, moments)
        log_determinant += len(group.members) * np.linalg.slogdet(covariance).logabsdet
    uncertainty = inverse_of(precision)
    means: Array = uncertainty @ pull
    squares = np.maximum(squares - (means * pull).sum(1), 0)
    log_determinant += np.linalg.slogdet(precision).logabsdet
    return Scatter(means, uncertainty, squares, log_determinant)


def ahead(group: Alike, spread: Spread) -> tuple[Array, Array]:
    """(Z, K) what each own step says of the own step ahead, and (Z,) the variance that it leaves."""
    across = spread.own(group.ahead, group.steps)
    weights = (across @ inverse_of(spread.own(group.steps, group.steps)))[:, 0]
    left = spread.own(group.ahead, group.ahead)[:, 0, 0] - (weights * across[:, 0]).sum(1)
    return weights, np.maximum(left, 0)


def inverse_of(matrices: Array) -> Array:
    """Of each of (Z, K, K) matrices."""
    return np.asarray(np.linalg.inv(matrices), dtype=np.float64)
