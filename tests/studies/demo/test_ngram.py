"""Kneser-Ney against a count by hand, its definition in dictionaries, and the law that all sums to one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.demo.ngram import Integers, KneserNey, discounts

ALPHABET = 4
documents_of_symbols = st.lists(
    st.lists(st.integers(0, ALPHABET - 1), min_size=1, max_size=60), min_size=1, max_size=4
)
histories = st.lists(st.integers(0, ALPHABET - 1), max_size=7)
orders = st.integers(1, 5)


def arrays(documents: Sequence[Sequence[int]]) -> list[Integers]:
    return [np.array(document, dtype=np.int64) for document in documents]


def by_definition(documents: list[list[int]], order: int, history: list[int], symbol: int) -> float:
    """P(symbol | history), counted afresh from the text by the textbook's recursion."""
    padded = [[ALPHABET] * (order - 1) + document for document in documents]
    occurrences = Counter(
        tuple(text[end - order + 1 : end + 1]) for text in padded for end in range(order - 1, len(text))
    )
    counts: dict[tuple[int, ...], int] = dict(occurrences)
    padded_history = ([ALPHABET] * (order - 1) + history)[len(history) :]

    def recurse(counts: dict[tuple[int, ...], int], context: tuple[int, ...]) -> float:
        neighbours: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for gram in counts:
            neighbours[gram[1:]].add(gram[0])
        lower = 1 / ALPHABET
        if len(next(iter(counts))) > 1:
            lower = recurse({gram: len(left) for gram, left in neighbours.items()}, context[1:])
        of_history = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not of_history:
            return lower
        taken = discounts(np.array(list(counts.values())))
        total = sum(of_history.values())
        rest = sum(taken[min(count, 3) - 1] for count in of_history.values()) / total
        count = of_history.get(symbol, 0)
        own = (count - taken[min(count, 3) - 1]) / total if count else 0.0
        return float(own + rest * lower)

    return recurse(counts, tuple(padded_history))


def test_bigrams_counted_by_hand() -> None:
    """The text `ababac`; too small for estimates, so the discounts are 1/2, 1 and 3/2.

    Left neighbours: a has two, b and c one each. P(a) = (2-1)/4 + (1+1/2+1/2)/4 · 1/4, and so on
    with a fourth symbol never seen. After `a` (b twice, c once): P(b | a) = (2-1)/3 + 1/2 · P(b).
    """
    model = KneserNey(arrays([[0, 1, 0, 1, 0, 2]]), ALPHABET, 2)
    a, b, c, d = 3 / 8, 1 / 4, 1 / 4, 1 / 8
    expected = [a / 2, 1 / 3 + b / 2, 1 / 6 + c / 2, d / 2]
    assert model.distribution([0]) == pytest.approx(expected)
    assert model.distribution([2]) == pytest.approx([a, b, c, d]), "nothing follows c: the unigrams alone"
    assert model.distribution([]) == pytest.approx([1 / 2 + a / 2, b / 2, c / 2, d / 2])


def test_discounts_by_the_formula() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 7])
    assert discounts(counts) == pytest.approx([0.5, 1.25, 2.0])


@pytest.mark.parametrize(
    "counts",
    [np.repeat([1, 2, 3], [8, 4, 2]), np.repeat([1, 2, 3, 4], [8, 1, 9, 1])],
    ids=["no n-gram of count four", "a negative discount"],
)
def test_discounts_without_estimates(counts: Integers) -> None:
    assert discounts(counts) == pytest.approx([0.5, 1.0, 1.5])


def test_symbols_in_equal_shares_cost_the_logarithm_of_the_alphabet() -> None:
    text = arrays([[0, 1, 2, 3, 3, 2, 1, 0]])
    assert KneserNey(text, ALPHABET, 1).bits(text) == pytest.approx(8 * 2.0)


def test_a_text_that_repeats_costs_next_to_nothing() -> None:
    training, held_out = arrays([[0, 1, 2, 3] * 5000]), arrays([[0, 1, 2, 3] * 100])
    assert KneserNey(training, ALPHABET, 3).bits(held_out) / 400 < 0.02


@given(documents_of_symbols, orders, histories)
def test_probabilities_sum_to_one(documents: list[list[int]], order: int, history: list[int]) -> None:
    distribution = KneserNey(arrays(documents), ALPHABET, order).distribution(history)
    assert distribution.sum() == pytest.approx(1.0, abs=1e-12)
    assert (distribution > 0).all()


@given(documents_of_symbols, orders, histories, st.integers(0, ALPHABET - 1))
def test_definition(documents: list[list[int]], order: int, history: list[int], symbol: int) -> None:
    model = KneserNey(arrays(documents), ALPHABET, order)
    expected = by_definition(documents, order, history, symbol)
    assert model.distribution(history)[symbol] == pytest.approx(expected, rel=1e-12)


@given(documents_of_symbols, documents_of_symbols, orders)
def test_bits_are_the_sum_over_all_symbols(seen: list[list[int]], new: list[list[int]], order: int) -> None:
    model = KneserNey(arrays(seen), ALPHABET, order)
    expected = sum(
        -math.log2(model.distribution(text[:position])[symbol])
        for text in new
        for position, symbol in enumerate(text)
    )
    assert model.bits(arrays(new)) == pytest.approx(expected)


def test_an_order_too_high_for_64_bits_is_refused() -> None:
    with pytest.raises(AssertionError, match="has to fit into an int64"):
        KneserNey(arrays([[0]]), 1024, 7)
