"""Which model is taken, and that a baseline that wins is called one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.rungs.evaluation import RANDOM_WEIGHTS, SEARCH, Retrained
from search.runs.choice import choose
from space.axes.architecture import Architecture


def retrained(layers: int, loss: float | None, origin: str = SEARCH) -> Retrained:
    """A result; the layers tell one architecture from another."""
    failure = None if loss is not None else "diverged"
    architecture = Architecture(64, 128, 4, 2, layers)
    return Retrained(
        architecture, origin, loss, None, 1000, 1.0, [], None if failure else "models/x", failure
    )


def test_the_lowest_loss_is_taken_and_compared_with_the_best_baseline() -> None:
    results = [
        retrained(4, 1.25),
        retrained(5, 1.5),
        retrained(6, 1.75, "depth"),
        retrained(7, 2.0, "uniform"),
    ]
    choice = choose(results)
    assert choice is not None
    assert choice.label == "h64-m128-q4-kv2-l4"
    assert choice.reason == (
        "lowest loss of 4 retrained models, 1.2500 nats per token, "
        "0.5000 below the best hand-made baseline (depth)"
    )


def test_a_baseline_that_wins_is_taken_and_said_to_be_one() -> None:
    choice = choose([retrained(4, 1.5), retrained(5, 1.25, "uniform")])
    assert choice is not None
    assert choice.label == "h64-m128-q4-kv2-l5"
    assert choice.reason.endswith(
        "1.2500 nats per token; it is the hand-made baseline 'uniform': the search found none better"
    )


def test_a_model_that_was_promoted_and_is_a_baseline_counts_once() -> None:
    promoted = retrained(4, 1.25, "uniform")
    choice = choose([promoted, retrained(5, 1.5), promoted])
    assert choice is not None
    assert choice.reason.startswith("lowest loss of 2 retrained models")


def test_without_baselines_none_is_compared_with() -> None:
    choice = choose([retrained(4, 1.25), retrained(5, 1.5)])
    assert choice is not None
    assert choice.reason == "lowest loss of 2 retrained models, 1.2500 nats per token"


def test_of_equal_losses_the_first_is_taken() -> None:
    choice = choose([retrained(5, 1.25), retrained(4, 1.25), retrained(6, 1.25, "depth")])
    assert choice is not None
    assert choice.label == "h64-m128-q4-kv2-l5"


def test_one_model_alone_is_not_the_lowest_of_one() -> None:
    choice = choose([retrained(4, 1.25), retrained(5, None)])
    assert choice is not None
    assert choice.reason == "the only retrained model, 1.2500 nats per token"


@pytest.mark.parametrize(
    "results",
    [[], [retrained(4, None)], [retrained(4, 1.0, RANDOM_WEIGHTS)]],
    ids=["nothing", "failures", "random weights"],
)
def test_nothing_to_choose_from(results: list[Retrained]) -> None:
    assert choose(results) is None


RESULTS = st.lists(
    st.builds(
        retrained,
        st.integers(1, 6),
        st.none() | st.sampled_from([1.0, 1.5, 2.0, 2.5]),
        st.sampled_from([SEARCH, "uniform", RANDOM_WEIGHTS]),
    ),
    unique_by=lambda result: (result.label, result.origin == RANDOM_WEIGHTS),
)


@given(RESULTS)
def test_nobody_kept_is_better(results: list[Retrained]) -> None:
    losses = [r.loss for r in results if r.origin != RANDOM_WEIGHTS and r.loss is not None]
    choice = choose(results)
    if not losses:
        assert choice is None
        return
    assert choice is not None
    chosen = next(r for r in results if r.label == choice.label and r.origin != RANDOM_WEIGHTS)
    assert chosen.loss == min(losses)
    assert choose([*results, replace(chosen, origin=RANDOM_WEIGHTS, loss=0.5)]) == choice
