"""A Bayesian learning curve shared by all candidates, with the scatter of single candidates about it.

The excess loss over a floor E falls as a power of the tokens t (arXiv 2203.15556, eq. 2; the shift by t₀
makes it finite at 0 tokens):

    L(t) = E + A (1 + t/t₀)^-b,   or   log(L - E) = a - b u   with u = log(1 + t/t₀)

A share s of the change in the first step, from 0 tokens, is no learning: it repairs the damage of pruning
and does not continue. All candidates share E, t₀, b and s, since one has too few points to determine them.

A step is the change of log(L - E) between two neighbouring rungs of a candidate. Steps of the same kind (from
one given rung to another) share a mean. About it each candidate has a slope of its own, a random walk
in u, and in the first step a recovery from pruning of its own. All are Gaussian. Variances are given relative
to that of the walk per unit of u (an e-fold of tokens). Computations run over Z combinations of t₀ and
the variances at once.

The means of the kinds depart from the law by a random walk as large as a candidate's own. All
candidates read the same batches, and the law may be wrong for all of them alike, so the forecast must
not become certain however many candidates agree.

The posterior is computed on a grid, with the walk's size integrated out (Student's t). How candidates
differ does not inform the law (Liu, Bayarri & Berger 2009, "Modularization in Bayesian analysis"): with many
candidates, a small error in that part of the model would decide the law.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import t as student_t

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Z combinations of t₀ with the variances of candidates, relative to the walk's; (Z,) each."""

    t0: Array
    """t₀ in tokens."""
    slope: Array
    """Variance of a candidate's slope."""
    repair: Array
    """Variance of its recovery from pruning in the first step."""

    def lengths(self, steps: Array) -> Array:
        """Return (Z, K) lengths in u of (K, 2) steps, given by their ends in tokens."""
        lengths: Array = np.log1p(steps[:, 1] / self.t0[:, None]) - np.log1p(steps[:, 0] / self.t0[:, None])
        return lengths

    def walk(self, one: Array, other: Array) -> Array:
        """Return the (Z, K, M) covariance of (K, 2) and (M, 2) steps of one walk: their overlap in u."""
        (start, end), (begin, finish) = one.T[:, :, None], other.T
        t0 = self.t0[:, None, None]
        shared = np.log1p(np.minimum(end, finish) / t0) - np.log1p(np.maximum(start, begin) / t0)
        walk: Array = np.maximum(shared, 0)
        return walk

    def own(self, one: Array, other: Array) -> Array:
        """Return the (Z, K, M) covariance of a candidate's steps about the means of their kinds."""
        first = (one[:, 0] == 0)[:, None] & (other[:, 0] == 0)
        slope = self.slope[:, None, None] * self.lengths(one)[:, :, None] * self.lengths(other)[:, None]
        own: Array = self.walk(one, other) + slope + self.repair[:, None, None] * first
        return own


@dataclass(frozen=True)
class CandidateGroup:
    """n candidates that were evaluated at the same rungs."""

    members: list[int]
    """Their positions among all candidates."""
    steps: Array
    """(K, 2) ends of each step in tokens."""
    kinds: list[int]
    """(K,) kind of each step, from 0 to G - 1."""
    excess: Array
    """(n, K + 1, E) log(L - E) at every rung, for every floor E of the grid."""
    ahead: Array
    """(1, 2) ends of the step to forecast, in tokens."""

    @property
    def change(self) -> Array:
        """The change of log(L - E) in each step, (n, K, E)."""
        return np.diff(self.excess, axis=1)


@dataclass(frozen=True)
class Scatter:
    """The means of G kinds of steps, and the deviations of the candidates from them."""

    means: Array
    """(Z, G, E)"""
    uncertainty: Array
    """(Z, G, G) covariance of the means, relative to the walk's variance."""
    squares: Array
    """(Z, E) weighted sum of squared deviations from the means."""
    log_determinant: Array
    """(Z,) log determinants of the covariance and of the means' precision, for the restricted likelihood."""


def scatter(groups: Sequence[CandidateGroup], kinds: int, spread: Spread) -> Scatter:
    """Fit the means of all kinds of steps by generalised least squares."""
    number, floors = len(spread.t0), groups[0].excess.shape[2]
    precision, pull = np.zeros((number, kinds, kinds)), np.zeros((number, kinds, floors))
    squares, log_determinant = np.zeros((number, floors)), np.zeros(number)
    for group in groups:
        covariance = spread.own(group.steps, group.steps)
        inverse, kind = batched_inverse(covariance), np.ix_(range(number), group.kinds, group.kinds)
        precision[kind] += len(group.members) * inverse
        pull[:, group.kinds] += inverse @ group.change.sum(0)
        moments = np.einsum("nke,nle->kle", group.change, group.change)
        squares += np.einsum("zkl,kle->ze", inverse, moments)
        log_determinant += len(group.members) * np.linalg.slogdet(covariance).logabsdet
    uncertainty = batched_inverse(precision)
    means: Array = uncertainty @ pull
    squares = np.maximum(squares - (means * pull).sum(1), 0)
    log_determinant += np.linalg.slogdet(precision).logabsdet
    return Scatter(means, uncertainty, squares, log_determinant)


def predict_next_step(group: CandidateGroup, spread: Spread) -> tuple[Array, Array]:
    """Return (Z, K) weights of a candidate's steps in predicting the step ahead, and (Z,) its variance."""
    across = spread.own(group.ahead, group.steps)
    weights = (across @ batched_inverse(spread.own(group.steps, group.steps)))[:, 0]
    left = spread.own(group.ahead, group.ahead)[:, 0, 0] - (weights * across[:, 0]).sum(1)
    return weights, np.maximum(left, 0)


def batched_inverse(matrices: Array) -> Array:
    """Return the inverse of each of (Z, K, K) matrices."""
    return np.asarray(np.linalg.inv(matrices), dtype=np.float64)


Curve = Sequence[tuple[int, float]]


def _midpoints(number: int) -> Array:
    """Return the midpoints of ``number`` equal parts of the interval from 0 to 1."""
    found: Array = (np.arange(number) + 0.5) / number
    return found


def _log_midpoints(low: float, high: float, number: int) -> Array:
    """Return the midpoints of ``number`` parts between two bounds, equal on a log scale."""
    return np.asarray(low * (high / low) ** _midpoints(number))


# Priors: uniform on a log scale, except for exponent b and share s, which are uniform.
#: (E − teacher's loss) / (lowest loss − teacher's loss), from 0.01 to 1.
_FLOORS = _log_midpoints(0.01, 1, 16)
#: A loss no more than this above the teacher's counts as equal to it, in nats per token.
_MARGIN = 1e-3
#: t₀: from this share of the first rung's tokens to those of the training to forecast, in so many values.
_LOWEST_T0, _T0S = 0.01, 20
#: b: from half of the exponents known for training without a floor (0.095 and less: arXiv 2001.08361) to 1,
#: the fastest rate of a regular estimator.
_EXPONENTS = 0.05 + 0.95 * _midpoints(16)
#: s: the share of the first step that repairs pruning.
_SHARES = _midpoints(5)
#: Variances of slope and repair relative to the walk's per e-fold of tokens: from negligible to dominant.
_SLOPES, _REPAIRS = _log_midpoints(0.01, 10, 4), _log_midpoints(0.1, 100, 4)
#: Prior of the walk: its standard deviation per e-fold of tokens, and the number of steps this counts for.
_PRIOR_WALK, _PRIOR_STEPS = 0.1, 2
_DRAWS = 4096


def posterior_losses(curves: Sequence[Curve], tokens: int, teacher: float) -> Array:
    """Draw (D, C) losses of C candidates after ``tokens`` tokens from the posterior, the same each time.

    Args:
        curves: each candidate's (tokens, loss in nats per token), ascending and none beyond ``tokens``.
        tokens: of the training to forecast.
        teacher: the teacher's loss.
    """
    floors = _floors(curves, teacher)
    groups, kinds = _groups(curves, tokens, floors)
    posterior = _Posterior.of(groups, kinds, _spreads(curves, tokens))
    draws = posterior.draws()
    drawn = np.empty((_DRAWS, len(curves)))
    for group in groups:
        steps = posterior.steps(group, draws)
        last = np.array([curves[member][-1][1] for member in group.members])
        bottom = floors[draws.floor, None]
        drawn[:, group.members] = bottom + (last - bottom) * np.exp(steps)
    return drawn


class _Draws(NamedTuple):
    """D draws: (D,) grid indices, and (D,) Student-t errors scaled by the walk's standard deviation."""

    cell: NDArray[np.intp]
    floor: NDArray[np.intp]
    power: NDArray[np.intp]
    share: NDArray[np.intp]
    walk: Array


@dataclass(frozen=True)
class _Posterior:
    """The posterior over the Z values of the spread, E, b and s, given G kinds of steps."""

    kinds: Array
    """(G, 2) ends of the steps of each kind in tokens."""
    spread: Spread
    parts: Scatter
    inverse: Array
    """(Z, G, G) inverse covariance of the means about the law, relative to the walk's variance."""
    log_weight: Array
    """(Z, E, b, s) log posterior, not normalised."""
    variance: Array
    """(Z, E, b, s) estimate of the walk's variance."""
    freedom: int
    """Degrees of freedom of that estimate."""

    @classmethod
    def of(cls, groups: Sequence[CandidateGroup], kinds: Array, spread: Spread) -> _Posterior:
        """Compute the posterior from the candidates."""
        parts = scatter(groups, len(kinds), spread)
        inverse = batched_inverse(spread.walk(kinds, kinds) + parts.uncertainty)
        own = _PRIOR_STEPS * _PRIOR_WALK**2 + parts.squares  # (Z, E)
        freedom = _PRIOR_STEPS + sum(group.change[..., 0].size for group in groups) - len(kinds)
        restricted = -(parts.log_determinant[:, None] + freedom * np.log(own)) / 2
        # Normalised at each t₀ and E, so that the differences between candidates do not inform t₀ and E.
        by_t0 = restricted.reshape(_T0S, -1, len(_FLOORS))
        by_t0 = by_t0 - logsumexp(by_t0, axis=1, keepdims=True)
        squares = np.stack([_residuals(parts.means, kinds, spread, inverse, share) for share in _SHARES], -1)
        scale = len(kinds) * np.log(own) - np.linalg.slogdet(inverse).logabsdet[:, None]
        total = freedom + len(kinds)  # of degrees of freedom
        weight = -(scale[..., None, None] + total * np.log1p(squares / own[..., None, None])) / 2
        weight += by_t0.reshape(restricted.shape)[..., None, None]
        # Jacobians: the density is of losses, not log(L - E), and of whole first steps, not the share 1 - s.
        weight -= _log_excess_after(groups, len(kinds))[:, None, None]
        weight += (kinds[:, 0] == 0).sum() * np.log1p(-_SHARES)
        variance: Array = (own[..., None, None] + squares) / total
        return cls(kinds, spread, parts, inverse, weight, variance, total)

    def draws(self) -> _Draws:
        """Draw one point from each of D equal parts of the posterior, the same each time."""
        random = np.random.default_rng(0)
        mass = np.exp(self.log_weight - self.log_weight.max()).ravel().cumsum()
        parts = (np.arange(_DRAWS) + random.random(_DRAWS)) / _DRAWS  # jittered, against aliasing
        cell, floor, power, share = np.unravel_index(
            np.searchsorted(mass / mass[-1], parts), self.log_weight.shape
        )
        noise = student_t.ppf(random.permutation(_midpoints(_DRAWS)), self.freedom)
        walk = np.sqrt(self.variance[cell, floor, power, share]) * noise
        return _Draws(cell, floor, power, share, walk)

    def steps(self, group: CandidateGroup, draws: _Draws) -> Array:
        """Draw (D, n) changes of log(L - E) in the step to forecast."""
        cell, power, share = draws.cell, _EXPONENTS[draws.power, None], _SHARES[draws.share, None]
        means = self.parts.means[cell, :, draws.floor]  # (D, G)
        first = means * (self.kinds[:, 0] == 0)
        departure = means - share * first + power * self.spread.lengths(self.kinds)[cell]
        across = self.spread.walk(group.ahead, self.kinds)[:, 0]  # (Z, G)
        gain = np.einsum("zg,zgh->zh", across, self.inverse)
        common = (gain[cell] * departure).sum(1) - power[:, 0] * self.spread.lengths(group.ahead)[cell, 0]
        if group.ahead[0, 0] == 0:
            common += share[:, 0] * first.sum(1)
        weights, left = predict_next_step(group, self.spread)
        left = left + self.spread.walk(group.ahead, group.ahead)[:, 0, 0] - (gain * across).sum(1)
        change = group.change[:, :, draws.floor].transpose(2, 0, 1) - means[:, None, group.kinds]
        own = (weights[cell, None] * change).sum(2)
        noise: Array = draws.walk * np.sqrt(np.maximum(left, 0))[cell]
        found: Array = own + (common + noise)[:, None]
        return found


def _residuals(means: Array, kinds: Array, spread: Spread, inverse: Array, share: float) -> Array:
    """Return (Z, E, b) weighted squared residuals of the means about the law."""
    lengths = spread.lengths(kinds)
    learnt = means * (1 - share * (kinds[:, 0] == 0))[:, None]
    weighed = inverse @ learnt
    cross = 2 * (weighed * lengths[..., None]).sum(1)[..., None] * _EXPONENTS
    last = np.einsum("zg,zgh,zh->z", lengths, inverse, lengths)[:, None, None] * _EXPONENTS**2
    squares: Array = np.maximum((weighed * learnt).sum(1)[..., None] + cross + last, 0)
    return squares


def _log_excess_after(groups: Sequence[CandidateGroup], kinds: int) -> Array:
    """Return (E,): log(L - E) after a step, averaged within each kind and summed over the kinds."""
    total, number = np.zeros((kinds, len(_FLOORS))), np.zeros((kinds, 1))
    for group in groups:
        total[group.kinds] += group.excess[:, 1:].sum(0)
        number[group.kinds] += len(group.members)
    after: Array = (total / number).sum(0)
    return after


def _floors(curves: Sequence[Curve], teacher: float) -> Array:
    losses = [loss for curve in curves for _, loss in curve]
    lowest = min(losses)
    bottom = teacher
    if teacher > lowest - _MARGIN:  # then assume a gap as large as the range of the losses
        bottom = lowest - max(max(losses) - lowest, _MARGIN)
    return np.asarray(bottom + (lowest - bottom) * _FLOORS)


def _spreads(curves: Sequence[Curve], tokens: int) -> Spread:
    first = min((seen for curve in curves for seen, _ in curve if seen > 0), default=tokens)
    t0s = _log_midpoints(_LOWEST_T0 * first, tokens, _T0S)
    axes = np.meshgrid(t0s, _SLOPES, _REPAIRS, indexing="ij")
    return Spread(*(axis.ravel() for axis in axes))


def _groups(curves: Sequence[Curve], tokens: int, floors: Array) -> tuple[list[CandidateGroup], Array]:
    """Group candidates by the rungs they were evaluated at; also return the (G, 2) kinds of steps."""
    by_rungs: dict[tuple[int, ...], list[int]] = {}
    for place, curve in enumerate(curves):
        by_rungs.setdefault(tuple(seen for seen, _ in curve), []).append(place)
    kinds = sorted({pair for rungs in by_rungs for pair in itertools.pairwise(rungs)})
    found = []
    for rungs, members in by_rungs.items():
        losses = np.array([[loss for _, loss in curves[member]] for member in members])
        number = [kinds.index(pair) for pair in itertools.pairwise(rungs)]
        last = np.array([[rungs[-1], tokens]], dtype=float)
        found.append(
            CandidateGroup(members, _array(kinds)[number], number, np.log(losses[..., None] - floors), last)
        )
    return found, _array(kinds)


def _array(pairs: list[tuple[int, int]]) -> Array:
    return np.array(pairs, dtype=float).reshape(-1, 2)
