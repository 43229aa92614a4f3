"""What to do next: promote whoever has earned it, else try something new.

Promotion is asynchronous: once half of rung k is finished, rung k + 1 takes in candidates in proportion
to the rest, so that no worker waits, and the sampler learns from distilled candidates while others are
still to be tried (ASHA, arXiv 1810.05934). The loss straight after pruning misleads, so a share of those
who leave rung 0 is drawn at random. Where the order at a rung says nothing of the order at the next, more
candidates than planned go up, as far as tokens were held back for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from search.rungs.evaluation import BY_HAND, SEARCH, Record
from search.rungs.promotion import best_first
from search.rungs.rung import Rung
from search.rungs.stability import says_nothing
from space.axes.architecture import Architecture

#: Rung 0 takes up to so many times the planned candidates, where most of them are over a bound.
_MORE = 2
#: Nobody goes up before this share of a rung is finished: the first would go up among few. On the exhaustive
#: study the default search ends 0.006 nats nearer to the best for it, with a million tokens.
_FIRST_SHARE = 0.5

Rule = Callable[[Sequence[Record]], list[int]]
"""Places of candidates in the order in which they go up."""


@dataclass(frozen=True)
class Bracket:
    """The rungs of a search and how many candidates each takes."""

    rungs: Sequence[Rung]
    candidates: Sequence[int]
    """Planned for each rung, rung 0 first."""
    objectives: tuple[str, ...]
    seed: int
    rung_tokens: Sequence[int] = ()
    """Of a candidate at rung 1, 2, …"""
    reserve_tokens: int = 0
    """For candidates beyond the plan."""
    rule: Rule | None = None
    """Who goes up first; by default by Pareto rank and crowding."""
    random_every: int = 4
    """Of those who leave rung 0, one in so many is drawn at random; 0 for none."""

    def promotion(self) -> tuple[int, Record] | None:
        """The next candidate to go up, and the rung it goes to; None if nobody is due."""
        quotas = self.quotas()
        for index in range(len(self.rungs) - 1, 0, -1):
            below, above = self.rungs[index - 1], self.rungs[index]
            finished = below.records()
            started = above.count()
            waiting = self._waiting(finished, above.entered(), index)
            if started >= self._places(len(finished), quotas[index - 1], quotas[index]):
                waiting = [r for r in waiting if index == 1 and r.origin == BY_HAND]  # as the user asked
            if waiting:
                return index, self._choose(waiting, index, started)
        return None

    @staticmethod
    def _places(finished: int, below: int, above: int) -> int:
        """How many may have entered a rung by now.

        Args:
            finished: candidates at the rung below.
            below: quota of that rung.
            above: quota of the rung.
        """
        since = finished - _FIRST_SHARE * below
        return min(above, int(above * since / (below * (1 - _FIRST_SHARE)) + 1e-9)) if since > 0 else 0

    def wants_more(self) -> bool:
        """Whether rung 0 takes one more: as planned, or more while a bound keeps rung 1 unfilled."""
        rung, tried = self.rungs[0], self.rungs[0].count()
        if tried < self.candidates[0] or not rung.bounds or len(self.rungs) == 1:
            return tried < self.candidates[0]
        most = min(_MORE * self.candidates[0], len(rung.space))
        return tried < most and len(rung.feasible()) < self.candidates[1]

    def quotas(self) -> list[int]:
        """How many each rung takes: as planned, and up to twice as many where the rung below misleads."""
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
        """Whether the order at the rung below says nothing of the order at this one."""
        below = {record.architecture: record for record in self.rungs[index - 1].complete()}
        both = [r for r in self.rungs[index].complete() if r.architecture in below]
        earlier, later = [below[r.architecture] for r in both], both
        return says_nothing(*([r.values(("loss",))[0] for r in side] for side in (earlier, later)))

    @staticmethod
    def _waiting(finished: list[Record], entered: set[Architecture], index: int) -> list[Record]:
        """Who may go up: to rung 1 the baselines before all others, so that they are always compared."""
        left = [r for r in finished if r.feasible and r.architecture not in entered]
        baselines = [r for r in left if r.origin != SEARCH] if index == 1 else []
        return baselines or left

    def _choose(self, waiting: list[Record], index: int, started: int) -> Record:
        if index == 1 and self.random_every and (started + 1) % self.random_every == 0:
            generator = np.random.default_rng((self.seed, index, started))
            return waiting[int(generator.integers(len(waiting)))]
        rule = self.rule or partial(by_pareto_rank, self.objectives)
        return waiting[rule(waiting)[0]]


def by_pareto_rank(objectives: tuple[str, ...], records: Sequence[Record]) -> list[int]:
    """Places of candidates by Pareto rank, within one by crowding distance; see ``best_first``."""
    return best_first([record.values(objectives) for record in records])
