"""Asynchronous successive halving over the rungs: which candidate to promote next, and by which order.

Once half of rung k is finished, rung k + 1 accepts candidates in proportion to the rest. So no worker
waits, and the sampler learns from distilled candidates while others are still to be tried (ASHA, arXiv
1810.05934). The loss straight after pruning misleads, so a share of the candidates promoted from rung 0 is
drawn at random. Where the order at a rung does not predict the order at the next, more candidates than
planned are promoted, as far as the reserve of tokens allows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from search.rungs.evaluation import BY_HAND, SEARCH, FinishedTrial
from search.rungs.rung import Rung
from space.axes.architecture import Architecture

Values = NDArray[np.float64]


def dominates(values: Values) -> NDArray[np.bool_]:
    """Return (N, N): whether candidate i is no worse than j in any objective and better in one.

    Args:
        values: (N, M) objectives, minimised.
    """
    no_worse = (values[:, None] <= values[None]).all(-1)
    better = (values[:, None] < values[None]).any(-1)
    above: NDArray[np.bool_] = np.logical_and(no_worse, better)
    return above


def pareto_ranks(values: Values) -> NDArray[np.int64]:
    """Return (N,): 0 for the Pareto front, 1 for the front of the rest, and so on (NSGA-II, Deb 2002, III.A).

    Args:
        values: (N, M) objectives, minimised.
    """
    above = dominates(values)
    ranks = np.full(len(values), -1, dtype=np.int64)
    rank = 0
    while (left := ranks < 0).any():
        front = left & ~(above & left[:, None]).any(0)
        ranks[front] = rank
        rank += 1
    return ranks


def crowding_distance(values: Values) -> Values:
    """Return the (N,) crowding distances within one front, infinite at the ends (NSGA-II, Deb 2002, III.B).

    Args:
        values: (N, M) objectives of the members of one front.
    """
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def best_first(values: Sequence[Sequence[float]]) -> list[int]:
    """Return the candidates' positions in the order of promotion.

    Sorts by Pareto rank, then by crowding distance, the largest first, then by the first objective, the loss.

    Args:
        values: (N, M) objectives, minimised.
    """
    if not len(values):
        return []
    table = np.asarray(values, dtype=np.float64)
    ranks = pareto_ranks(table)
    crowding = np.empty(len(table))
    for rank in range(ranks.max() + 1):
        crowding[ranks == rank] = crowding_distance(table[ranks == rank])
    return [int(place) for place in np.lexsort((table[:, 0], -crowding, ranks))]


def pareto_front(values: Sequence[Sequence[float]]) -> list[int]:
    """Return the positions of the Pareto front, sorted by the first objective."""
    if not len(values):
        return []
    table = np.asarray(values, dtype=np.float64)
    front = np.flatnonzero(pareto_ranks(table) == 0)
    return [int(place) for place in front[np.argsort(table[front, 0], kind="stable")]]


#: Fewest candidates for a test of rank correlation, and its significance level.
_MIN_CANDIDATES, _SIGNIFICANCE = 8, 0.05


def rank_correlations(orders: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return Kendall's tau-b and the regret for every two orders, over the candidates of both.

    The regret is the value, in the second order, of the candidate that the first order ranks best, less the
    best value there; the mean if several are best. Both are None for fewer than two candidates.

    Args:
        orders: from the name of an order (``parameters``, ``rung 0``, …, ``retraining``) to the value of each
            candidate by label, lower is better. In each pair the order that is listed earlier is the first.
    """
    return [_comparison(*first, *second) for first, second in itertools.combinations(orders.items(), 2)]


def _comparison(
    first: str, one: Mapping[str, float], second: str, other: Mapping[str, float]
) -> dict[str, Any]:
    labels = [label for label in one if label in other]
    before, after = [one[label] for label in labels], [other[label] for label in labels]
    tau = float(kendalltau(before, after).statistic) if len(labels) > 1 else math.nan
    return {
        "from": first,
        "to": second,
        "kendall_tau": None if math.isnan(tau) else tau,
        "regret": _regret(before, after) if len(labels) > 1 else None,
        "candidates": len(labels),
    }


def _regret(before: Sequence[float], after: Sequence[float]) -> float:
    best = min(before)
    return mean(b for a, b in zip(before, after, strict=True) if a == best) - min(after)


def is_uninformative(earlier: Sequence[float], later: Sequence[float]) -> bool:
    """Whether two orders of the same candidates show no significant positive rank correlation.

    Tests Kendall's tau, one-sided, at 5%; false for fewer than eight candidates.

    Args:
        earlier: a value of each candidate.
        later: another value of the same candidates.
    """
    if len(earlier) < _MIN_CANDIDATES:
        return False
    p_value = float(kendalltau(earlier, later, alternative="greater").pvalue)
    return not p_value < _SIGNIFICANCE  # NaN if all are equal, which is uninformative


#: Rung 0 takes up to this many times the planned candidates while too few of them lie within the bounds.
_MOST_OVER_PLAN = 2
#: No promotion before this share of a rung is finished: early ones would be chosen among few. In the
#: exhaustive study the default search ends 0.006 nats nearer to the best for it, with a million tokens.
_FIRST_SHARE = 0.5

Rule = Callable[[Sequence[FinishedTrial]], list[int]]
"""Returns the positions of candidates in the order of promotion."""


@dataclass(frozen=True)
class Bracket:
    """The rungs of a search, and the rules of promotion between them."""

    rungs: Sequence[Rung]
    candidates: Sequence[int]
    """Planned candidates of each rung, rung 0 first."""
    objectives: tuple[str, ...]
    seed: int
    rung_tokens: Sequence[int] = ()
    """Training tokens per candidate at rung 1, 2, …"""
    reserve_tokens: int = 0
    """Training tokens for candidates beyond the plan."""
    rule: Rule | None = None
    """The order of promotion; by default by Pareto rank and crowding distance."""
    together: bool = False
    """Whether a rung takes its candidates all at once, when the rung below is complete."""
    random_every: int = 4
    """One in this many of the candidates promoted from rung 0 is drawn at random; 0 for none."""

    def promotion(self) -> tuple[int, FinishedTrial] | None:
        """Return the rung that takes the next promotion, and the candidate; None if no promotion is due."""
        quotas = self.quotas()
        for index in range(len(self.rungs) - 1, 0, -1):
            below, above = self.rungs[index - 1], self.rungs[index]
            finished = below.records()
            started = above.count()
            waiting = self._waiting(finished, above.entered(), index)
            allowed = self._allowed(len(finished), quotas[index - 1], quotas[index])
            if self.together:
                allowed = quotas[index] if finished and self._complete(index - 1) else 0
            if started >= allowed:
                waiting = [r for r in waiting if index == 1 and r.origin == BY_HAND]  # as the user asked
            if waiting:
                return index, self._choose(waiting, index, started)
        return None

    @staticmethod
    def _allowed(finished: int, below: int, above: int) -> int:
        """Return how many candidates may have entered a rung by now.

        Args:
            finished: finished candidates of the rung below.
            below: quota of that rung.
            above: quota of the rung.
        """
        since = finished - _FIRST_SHARE * below
        return min(above, int(above * since / (below * (1 - _FIRST_SHARE)) + 1e-9)) if since > 0 else 0

    def _complete(self, index: int) -> bool:
        """Whether no candidate of a rung is at work or still to come."""
        return not self.rungs[index].has_unfinished() and not (index == 0 and self.wants_more())

    def wants_more(self) -> bool:
        """Whether rung 0 takes one more: as planned, or beyond while too few are feasible to fill rung 1."""
        rung, tried = self.rungs[0], self.rungs[0].count()
        if tried < self.candidates[0] or not rung.bounds or len(self.rungs) == 1:
            return tried < self.candidates[0]
        most = min(_MOST_OVER_PLAN * self.candidates[0], len(rung.space))
        return tried < most and len(rung.feasible()) < self.candidates[1]

    def quotas(self) -> list[int]:
        """Return each rung's quota: as planned, or up to double where the rung below misleads."""
        quotas, left = [self.candidates[0]], self.reserve_tokens
        for index, planned in enumerate(self.candidates[1:], start=1):
            extra = max(0, self.rungs[index].count() - planned)
            if left and self._misleads(index):
                most = min(planned, quotas[-1] - planned, left // self.rung_tokens[index - 1])
                extra = max(extra, most)
            if extra:
                left -= extra * self.rung_tokens[index - 1]
            quotas.append(planned + extra)
        return quotas

    def _misleads(self, index: int) -> bool:
        """Whether the losses at the rung below are uninformative about those at this rung."""
        below = {record.architecture: record for record in self.rungs[index - 1].complete()}
        both = [r for r in self.rungs[index].complete() if r.architecture in below]
        earlier, later = [below[r.architecture] for r in both], both
        return is_uninformative(*([r.values(("loss",))[0] for r in side] for side in (earlier, later)))

    @staticmethod
    def _waiting(
        finished: list[FinishedTrial], entered: set[Architecture], index: int
    ) -> list[FinishedTrial]:
        """Return who may be promoted; to rung 1 first the baselines, so that they are always compared."""
        left = [r for r in finished if r.feasible and r.architecture not in entered]
        baselines = [r for r in left if r.origin != SEARCH] if index == 1 else []
        return baselines or left

    def _choose(self, waiting: list[FinishedTrial], index: int, started: int) -> FinishedTrial:
        if index == 1 and self.random_every and (started + 1) % self.random_every == 0:
            generator = np.random.default_rng((self.seed, index, started))
            return waiting[int(generator.integers(len(waiting)))]
        rule = self.rule or partial(by_pareto_rank, self.objectives)
        return waiting[rule(waiting)[0]]


def by_pareto_rank(objectives: tuple[str, ...], records: Sequence[FinishedTrial]) -> list[int]:
    """Return the positions of candidates by Pareto rank, then crowding distance; see ``best_first``."""
    return best_first([record.values(objectives) for record in records])
