"""Who goes up: candidates ordered by Pareto rank, and within a rank by how alone they stand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def dominates(values: Values) -> NDArray[np.bool_]:
    """(N, N) whether candidate i is nowhere worse than j and somewhere better.

    Args:
        values: (N, M) objectives, minimised.
    """
    no_worse = (values[:, None] <= values[None]).all(-1)
    better = (values[:, None] < values[None]).any(-1)
    above: NDArray[np.bool_] = np.logical_and(no_worse, better)
    return above


def pareto_ranks(values: Values) -> NDArray[np.int64]:
    """(N,) 0 for the Pareto front, 1 for the front of the rest, and so on (NSGA-II, Deb 2002, III.A).

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


def crowding(values: Values) -> Values:
    """(N,) crowding distance within one front; infinite at the ends (NSGA-II, Deb 2002, III.B).

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
    """Positions from the first to promote to the last.

    By Pareto rank; within a rank by crowding distance, the most alone first; among equals by the
    first objective, which is the loss.

    Args:
        values: (N, M) objectives, minimised.
    """
    if not len(values):
        return []
    table = np.asarray(values, dtype=np.float64)
    ranks = pareto_ranks(table)
    alone = np.empty(len(table))
    for rank in range(ranks.max() + 1):
        alone[ranks == rank] = crowding(table[ranks == rank])
    return [int(place) for place in np.lexsort((table[:, 0], -alone, ranks))]


def pareto_front(values: Sequence[Sequence[float]]) -> list[int]:
    """Positions of the Pareto front, by the first objective."""
    if not len(values):
        return []
    table = np.asarray(values, dtype=np.float64)
    front = np.flatnonzero(pareto_ranks(table) == 0)
    return [int(place) for place in front[np.argsort(table[front, 0], kind="stable")]]
