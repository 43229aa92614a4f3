"""Spreading candidates evenly over an enumerated space, whatever was tried before and by whom.

Near a budget the sizes that fit form a thin shell in the box of all sizes. A low-discrepancy sequence that
fills the box covers the shell less evenly than lots do, once it is moved there. So each candidate is chosen
against those that are there: the one after which the architectures of the space lie nearest to what was
tried, on average (the greedy rule for k medians).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Rows = NDArray[np.intp]
#: So many candidates are looked at, and the distances of so many architectures, both drawn by lot.
_CANDIDATES, _SAMPLE = 64, 500


def most_needed(sizes: NDArray[np.int64], tried: NDArray[np.bool_], generator: np.random.Generator) -> int:
    """The untried architecture that, once tried, leaves the space nearest to what was tried.

    Args:
        sizes: (n, axes) of all architectures; each axis counts by its range.
        tried: (n,) at least one is not.
        generator: of the lots.
    """
    places = sizes / np.maximum(np.ptp(sizes, axis=0), 1)
    candidates = _some(np.flatnonzero(~tried), _CANDIDATES, generator)
    sample = places[_some(np.arange(len(places)), _SAMPLE, generator)]
    distances = _distances(sample, places[candidates])
    if tried.any():
        distances = np.minimum(distances, _distances(sample, places[tried]).min(1, keepdims=True))
    return int(candidates[distances.mean(0).argmin()])


def _some(rows: Rows, most: int, generator: np.random.Generator) -> Rows:
    return generator.choice(rows, min(most, len(rows)), replace=False)


def _distances(these: Reals, those: Reals) -> Reals:
    """(n, m) Euclidean."""
    squares = ((these[:, None] - those[None]) ** 2).sum(-1)
    distances: Reals = np.sqrt(squares)
    return distances
