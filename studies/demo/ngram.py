"""An n-gram model to hold the teacher against: interpolated modified Kneser-Ney.

Source of the formulas: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language
Modeling (Harvard TR-10-98, 1998), section 3. An n-gram is one integer, its symbols the digits, the
oldest first; a table is a sorted array of such integers, so that fitting is sorting and scoring is
binary search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Discounts where the counts of counts give none: half of each count up to three.
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Table:
    """What one order adds: P(w | h) = share(hw) + rest(h) · P(w | h without its oldest symbol)."""

    grams: Integers
    """(G,) sorted: the n-grams seen in training."""
    shares: Floats
    """(G,) discounted count of each over the count of its history."""
    histories: Integers
    """(H,) sorted: the distinct histories of those n-grams."""
    rests: Floats
    """(H,) what the discounts leave to the lower order; 1 for a history never seen."""


class KneserNey:
    """P(symbol | the ``order`` - 1 symbols before it), zero for no symbol of the alphabet.

    The highest order counts occurrences, the lower ones distinct left neighbours, and below the
    unigrams lies the uniform distribution. A document begins with ``order`` - 1 boundary symbols,
    which are never predicted.

    Args:
        documents: the training text, each an array of symbols from 0 up to ``alphabet``.
        alphabet: V, the number of symbols.
        order: n, the symbols of an n-gram; (V + 1)ⁿ has to fit into 63 bits.
    """

    def __init__(self, documents: Sequence[Integers], alphabet: int, order: int) -> None:
        assert order >= 1
        assert (alphabet + 1) ** order < 2**63, "an n-gram has to fit into an int64"
        self.alphabet, self.order = alphabet, order
        tables = []
        grams, counts = np.unique(self._grams(documents), return_counts=True)
        for length in range(order, 0, -1):
            tables.append(_table(grams, counts, self._radix))
            suffixes = grams % self._radix ** (length - 1)
            grams, counts = np.unique(suffixes, return_counts=True)
        self._tables = tables[::-1]

    @property
    def _radix(self) -> int:
        return self.alphabet + 1

    def _grams(self, documents: Sequence[Integers]) -> Integers:
        """(T,) the n-gram that ends at each symbol of the documents, in order."""
        boundary = np.full(self.order - 1, self.alphabet, dtype=np.int64)
        stream = np.concatenate([part for document in documents for part in (boundary, document)])
        length = len(stream) - self.order + 1
        grams = np.zeros(length, dtype=np.int64)
        for offset in range(self.order):
            grams *= self._radix
            grams += stream[offset : offset + length]
        return grams[stream[self.order - 1 :] < self.alphabet]

    def _probabilities(self, grams: Integers) -> Floats:
        """(T,) P of the last symbol of each n-gram given the ones before it."""
        probabilities = np.full(len(grams), 1 / self.alphabet)
        for length, table in enumerate(self._tables, start=1):
            suffixes = grams % self._radix**length
            probabilities *= _find(table.histories, table.rests, suffixes // self._radix, 1.0)
            probabilities += _find(table.grams, table.shares, suffixes, 0.0)
        return probabilities

    def distribution(self, history: Sequence[int]) -> Floats:
        """(V,) the probability of every symbol after ``history``, the start of a document or all of it."""
        padded = [self.alphabet] * (self.order - 1) + list(history)
        gram = 0
        for symbol in padded[len(padded) - self.order + 1 :]:
            gram = gram * self._radix + symbol
        return self._probabilities(gram * self._radix + np.arange(self.alphabet, dtype=np.int64))

    def bits(self, documents: Sequence[Integers]) -> float:
        """Code length of the documents in bits: the sum of -log₂ P over all their symbols."""
        return float(-np.log2(self._probabilities(self._grams(documents))).sum())


def discounts(counts: Integers) -> Floats:
    """(3,) what is taken off a count of one, of two, and of three or more.

    With nₖ the number of n-grams of count k and Y = n₁ / (n₁ + 2n₂): Dₖ = k - (k + 1) Y nₖ₊₁ / nₖ
    (equation 26). Too small a text has no such estimates; then 0.5, 1 and 1.5.

    Args:
        counts: (G,) of the distinct n-grams of one order.
    """
    of_counts = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    if not of_counts.all():
        return np.array(_FALLBACK_DISCOUNTS)
    sizes = np.arange(1, 4)
    y = of_counts[0] / (of_counts[0] + 2 * of_counts[1])
    estimates: Floats = sizes - (sizes + 1) * y * of_counts[1:] / of_counts[:-1]
    return estimates if (estimates >= 0).all() else np.array(_FALLBACK_DISCOUNTS)


def _table(grams: Integers, counts: Integers, radix: int) -> _Table:
    """The table of one order from its distinct n-grams, sorted, and their counts."""
    histories, starts = np.unique(grams // radix, return_index=True)
    taken = discounts(counts)[np.minimum(counts, 3) - 1]
    totals = np.add.reduceat(counts, starts)
    widths = np.diff(np.append(starts, len(grams)))
    shares = (counts - taken) / np.repeat(totals, widths)
    return _Table(grams, shares, histories, np.add.reduceat(taken, starts) / totals)


def _find(keys: Integers, values: Floats, wanted: Integers, default: float) -> Floats:
    """(T,) the values of the wanted keys, ``default`` for those that are not there."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Floats = np.where(keys[places] == wanted, values[places], default)
    return found
