"""Kendall's tau against hand-counted pairs, regret against hand-made differences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.rungs.bracket import rank_correlations

LABELS = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=2)


def test_by_hand() -> None:
    one = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    # Of six pairs one is swapped: (5 - 1) / 6.
    other = {"a": 10.0, "b": 30.0, "c": 20.0, "d": 40.0}
    assert rank_correlations({"rung 0": one, "rung 1": other}) == [
        {
            "from": "rung 0",
            "to": "rung 1",
            "kendall_tau": pytest.approx(4 / 6),
            "regret": 0.0,
            "candidates": 4,
        }
    ]


def test_ties_count_as_tau_b_has_it() -> None:
    # Pairs: ab tied in one; ac and bc agree. tau-b = 2 / sqrt(3 - 1) / sqrt(3).
    [found] = rank_correlations({"x": {"a": 1.0, "b": 1.0, "c": 2.0}, "y": {"a": 1.0, "b": 2.0, "c": 3.0}})
    assert found["kendall_tau"] == pytest.approx(2 / 6**0.5)


def test_only_candidates_of_both_count() -> None:
    first, second = {"a": 1.0, "b": 2.0, "gone": 0.0}, {"b": 1.0, "new": 5.0, "a": 2.0}
    [found] = rank_correlations({"rung 0": first, "rung 1": second})
    assert (found["candidates"], found["kendall_tau"]) == (2, pytest.approx(-1.0))


@pytest.mark.parametrize(
    ("first", "second", "candidates"),
    [({}, {}, 0), ({"a": 1.0}, {"a": 2.0}, 1), ({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 3.0}, 2)],
    ids=["nobody", "one", "no order"],
)
def test_without_an_order_there_is_no_figure(
    first: dict[str, float], second: dict[str, float], candidates: int
) -> None:
    [found] = rank_correlations({"rung 0": first, "rung 1": second})
    assert (found["candidates"], found["kendall_tau"]) == (candidates, None)
    assert found["regret"] == (0.5 if candidates > 1 else None), "two that are first alike: either, by chance"


def test_the_regret_is_what_the_first_has_more_than_the_best() -> None:
    one = {"gone": 0.0, "a": 1.0, "b": 2.0, "c": 3.0}
    [found] = rank_correlations({"rung 0": one, "retraining": {"new": 0.1, "a": 2.5, "b": 2.25, "c": 3.0}})
    assert found["regret"] == pytest.approx(0.25)


def test_every_two_orders_are_compared_once_earlier_first() -> None:
    orders: dict[str, dict[str, float]] = {
        name: {} for name in ("parameters", "rung 0", "rung 1", "retraining")
    }
    assert [(one["from"], one["to"]) for one in rank_correlations(orders)] == [
        ("parameters", "rung 0"),
        ("parameters", "rung 1"),
        ("parameters", "retraining"),
        ("rung 0", "rung 1"),
        ("rung 0", "retraining"),
        ("rung 1", "retraining"),
    ]


@given(LABELS, st.data())
def test_an_order_agrees_with_itself_and_not_with_its_reverse(labels: list[str], data: st.DataObject) -> None:
    places = data.draw(st.permutations(range(len(labels))))
    order = {label: float(place) for label, place in zip(labels, places, strict=True)}
    mirrored = {label: -place for label, place in order.items()}
    same, reverse, _ = rank_correlations({"one": order, "same": dict(order), "mirrored": mirrored})
    assert same["kendall_tau"] == pytest.approx(1.0)
    assert reverse["kendall_tau"] == pytest.approx(-1.0)
    assert (same["regret"], reverse["regret"]) == (0.0, len(labels) - 1), "the best, and the worst"
