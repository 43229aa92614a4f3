"""What to do next: promote whoever has earned it, else try something new.

Promotion is asynchronous: rung k + 1 takes in candidates in proportion to those that rung k has
finished, so that the sampler learns from distilled candidates while others are still to be tried
(ASHA, arXiv 1810.05934). The loss straight after pruning misleads, so a share of those who leave
rung 0 is drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.promotion import best_first
from search.rung import SEARCH, Record, Rung
from space.architecture import Architecture

#: Of those who leave rung 0, every fourth is drawn at random.
_RANDOM_EVERY = 4


@dataclass(frozen=True)
class Bracket:
    """The rungs of a search and how many candidates each takes."""

    rungs: Sequence[Rung]
    candidates: Sequence[int]
    """Of each rung, rung 0 first."""
    objectives: tuple[str, ...]
    seed: int

    def promotion(self) -> tuple[int, Record] | None:
        """The next candidate to go up, and the rung it goes to; None if nobody is due."""
        for index in range(len(self.rungs) - 1, 0, -1):
            below, above = self.rungs[index - 1], self.rungs[index]
            finished = below.records()
            started = above.count()
            if started < self._places(index, len(finished)):
                waiting = self._waiting(finished, above.entered(), index)
                if waiting:
                    return index, self._choose(waiting, index, started)
        return None

    def wants_more(self) -> bool:
        """Whether rung 0 takes another candidate."""
        return self.rungs[0].count() < self.candidates[0]

    def _places(self, index: int, finished_below: int) -> int:
        """How many may have entered a rung by now."""
        share = self.candidates[index] / self.candidates[index - 1]
        return min(self.candidates[index], int(finished_below * share + 1e-9))

    @staticmethod
    def _waiting(finished: list[Record], entered: set[Architecture], index: int) -> list[Record]:
        """Who may go up: to rung 1 the baselines before all others, so that they are always compared."""
        left = [r for r in finished if r.evaluation is not None and r.architecture not in entered]
        baselines = [r for r in left if r.origin != SEARCH] if index == 1 else []
        return baselines or left

    def _choose(self, waiting: list[Record], index: int, started: int) -> Record:
        if index == 1 and started % _RANDOM_EVERY == _RANDOM_EVERY - 1:
            generator = np.random.default_rng((self.seed, index, started))
            return waiting[int(generator.integers(len(waiting)))]
        return waiting[best_first([record.values(self.objectives) for record in waiting])[0]]
