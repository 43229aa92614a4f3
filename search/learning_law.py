"""The law by which candidates learn, as a posterior: what ``search.learning_curve`` forecasts with.

The excess over a floor falls as a power of the tokens (arXiv 2203.15556, eq. 2; the shift by t₀ lets it begin
at no tokens at all):

    L(t) = E + A (1 + t/t₀)^-b,   or   log(L - E) = a - b u   with u = log(1 + t/t₀)

E, t₀ and b are shared by all candidates, since one has too few points to tell them. log(L - E) departs from
the law in three ways, Gaussian all: a candidate has a slope of its own; it walks at random in u; and all walk
together besides, because they read the same batches and the law may be wrong for all of them alike. So what
was seen last says the most, the further a forecast reaches the less is sure, and however many candidates
agree, it does not grow certain of the law.

Given E, t₀, b and the spread of slopes this is a regression on the differences between neighbouring rungs; a
grid is laid over those four, and the size of the walk is integrated out (Student's t).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from scipy.stats import t as student_t

Array = NDArray[np.float64]
Curve = Sequence[tuple[int, float]]

#: All four are taken to be alike likely on a log scale, since none has a scale of its own that is known.
#: E: from a hundredth of the gap between the teacher and the lowest loss seen, to all of it.
_FLOORS = (0.01, 1.0)
#: t₀: from a hundredth of the first rung's tokens to all those of the training that is forecast.
_FIRST_TURN = 0.01
#: b: from half of what is known of training without a floor (0.095 and less: arXiv 2001.08361) to 1, which no
#: regular estimate surpasses.
_POWERS = (0.05, 1.0)
#: Variance of own slopes over that of the walk, for each e-fold of tokens: from next to nothing to all.
_SLOPES = (0.01, 10.0)
#: Variance of what all walk together over that of a candidate's own walk: as much, for want of a measure.
_TOGETHER = 1.0
#: Before any step was seen: the walk's deviation over an e-fold of tokens, and how many steps that is worth.
_WALK, _STEPS = 0.1, 2
_GRID = (32, 20, 6, 32)
_DRAWS = 4096


@dataclass(frozen=True)
class _Steps:
    """Ways from one point of a curve to a later one, (N,) each."""

    candidate: NDArray[np.int64]
    before: Array
    after: Array

    def on(self, turn: float) -> tuple[Array, Array]:
        """Where they begin and end in u."""
        return np.log1p(self.before / turn), np.log1p(self.after / turn)


def ends(curves: Sequence[Curve], tokens: int, teacher: float) -> Array:
    """(D, C) losses of C candidates after ``tokens`` tokens, drawn from the posterior, the same each time.

    Args:
        curves: of each candidate (tokens, loss in nats per token), ascending and none beyond ``tokens``.
        tokens: of the training whose end is asked for.
        teacher: its loss.
    """
    floors, turns, slopes, powers = _grid(curves, tokens, teacher)
    seen, pairs = _seen(curves)
    excess = np.log(pairs[:, :, None] - floors)  # (N, before and after, floors)
    change, after = excess[:, 1] - excess[:, 0], excess[:, 1].sum(0)
    ahead = _ahead(curves, tokens)
    cells = [_Cell.of(seen, ahead, turn, slope, change) for turn, slope in itertools.product(turns, slopes)]
    number = _STEPS + len(pairs)
    squares = _STEPS * _WALK**2 + np.stack([cell.squares(powers) for cell in cells])
    volume = np.array([cell.log_determinant for cell in cells]) / 2
    # After the volume, the density of losses in place of that of their logarithms.
    weight = -number / 2 * np.log(squares) - volume[:, None, None] - after[:, None]
    cell, floor, power = _evenly(weight)
    walk = np.sqrt(squares[cell, floor, power] / number) * _student(number)
    steps = np.stack([one.told for one in cells])[cell, floor]
    steps -= powers[power, None] * np.stack([one.way for one in cells])[cell]
    steps += walk[:, None] * np.stack([one.deviation for one in cells])[cell]
    last = np.array([curve[-1][1] for curve in curves])
    bottom = floors[floor, None]
    drawn: Array = bottom + (last - bottom) * np.exp(steps)
    return drawn


@dataclass(frozen=True)
class _Cell:
    """The regression at one t₀ and spread of slopes: S is the inverse of the covariance of N steps seen.

    d are the changes of log(L - E), w the ways in u; of C steps ahead K is the covariance with those seen.
    """

    change_change: Array
    """(floors,) d' S d."""
    change_way: Array
    """(floors,) d' S w."""
    way_way: float
    """w' S w."""
    log_determinant: float
    told: Array
    """(floors, C) K' S d, what the changes say of the steps ahead."""
    way: Array
    """(C,) the ways ahead less K' S w, what those seen have said of them."""
    deviation: Array
    """(C,) of the steps ahead, over the walk's."""

    @classmethod
    def of(cls, seen: _Steps, ahead: _Steps, turn: float, slope: float, change: Array) -> _Cell:
        """Solve it.

        Args:
            seen: N steps.
            ahead: C steps.
            turn: t₀.
            slope: variance of own slopes over the walk's.
            change: (N, floors) d.
        """
        (start, end), (begin, finish) = seen.on(turn), ahead.on(turn)
        root = np.linalg.cholesky(_covariance(seen, seen, turn, slope))
        known = solve_triangular(root, np.column_stack([change, end - start]), lower=True)
        across = solve_triangular(root, _covariance(seen, ahead, turn, slope), lower=True)
        told, change, way = known.T @ across, known[:, :-1], known[:, -1]
        own = np.diag(_covariance(ahead, ahead, turn, slope))
        return cls(
            change_change=(change**2).sum(0),
            change_way=change.T @ way,
            way_way=float(way @ way),
            log_determinant=2 * float(np.log(np.diag(root)).sum()),
            told=told[:-1],
            way=finish - begin - told[-1],
            deviation=np.sqrt(np.maximum(own - (across**2).sum(0), 0)),
        )

    def squares(self, powers: Array) -> Array:
        """(floors, powers) r' S r of what the law leaves, r = d + b w."""
        cross = self.change_way[:, None] * powers
        squares: Array = self.change_change[:, None] + 2 * cross + self.way_way * powers**2
        return squares


def _covariance(one: _Steps, other: _Steps, turn: float, slope: float) -> Array:
    """(N, M) between steps, over the variance of a candidate's own walk."""
    (start, end), (begin, finish) = one.on(turn), other.on(turn)
    shared = np.minimum(end[:, None], finish) - np.maximum(start[:, None], begin)
    same = one.candidate[:, None] == other.candidate
    own = slope * (end - start)[:, None] * (finish - begin)
    covariance: Array = (same + _TOGETHER) * np.maximum(shared, 0) + same * own
    return covariance


def _grid(curves: Sequence[Curve], tokens: int, teacher: float) -> tuple[Array, Array, Array, Array]:
    losses = [loss for curve in curves for _, loss in curve]
    lowest = min(losses)
    # Students below the teacher may have as far to go as all have come.
    bottom = teacher if teacher < lowest else lowest - max(max(losses) - lowest, 1e-3)
    first = min((seen for curve in curves for seen, _ in curve if seen > 0), default=tokens)
    bounds = (_FLOORS, (_FIRST_TURN * first, tokens), _SLOPES, _POWERS)
    shares, turns, slopes, powers = (
        low * (high / low) ** _middles(number) for number, (low, high) in zip(_GRID, bounds, strict=True)
    )
    return bottom + (lowest - bottom) * shares, turns, slopes, powers


def _seen(curves: Sequence[Curve]) -> tuple[_Steps, Array]:
    """The steps between neighbouring rungs, and (N, 2) the losses before and after each."""
    found = [(i, *pair) for i, curve in enumerate(curves) for pair in itertools.pairwise(curve)]
    steps = _Steps(
        np.array([i for i, _, _ in found], dtype=np.int64),
        np.array([float(before) for _, (before, _), _ in found]),
        np.array([float(after) for _, _, (after, _) in found]),
    )
    return steps, np.array([(one, two) for _, (_, one), (_, two) in found]).reshape(-1, 2)


def _ahead(curves: Sequence[Curve], tokens: int) -> _Steps:
    """The step of every candidate from what was seen last to the end that is asked for."""
    last = np.array([float(curve[-1][0]) for curve in curves])
    return _Steps(np.arange(len(curves)), last, np.full(len(curves), float(tokens)))


def _evenly(weight: Array) -> tuple[NDArray[np.intp], ...]:
    """Places drawn in proportion to exp(weight), at even distances, so that they are the same each time."""
    mass = np.exp(weight - logsumexp(weight)).ravel().cumsum()
    return np.unravel_index(np.searchsorted(mass / mass[-1], _middles(_DRAWS)), weight.shape)


def _student(freedom: int) -> Array:
    """(D,) draws of Student's t, in an order that has nothing to do with that of the places."""
    shuffled = np.random.default_rng(0).permutation(_middles(_DRAWS))
    drawn: Array = student_t.ppf(shuffled, freedom)
    return drawn


def _middles(number: int) -> Array:
    """The middles of so many equal parts of 0 to 1."""
    middles: Array = (np.arange(number) + 0.5) / number
    return middles
