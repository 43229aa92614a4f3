"""Rungs and candidates from a number of tokens: within it, each rung smaller than the one below."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from search.settings.bracket_plan import ETA, plan_bracket, rungs_up_to, tokens_for, tokens_spent
from space.input_error import InputError


def test_rungs_grow_by_the_factor_and_the_last_leaves_retraining_as_much() -> None:
    assert rungs_up_to(12_288, 262_144) == (12_288, 49_152)
    assert rungs_up_to(12_288, 196_608) == (12_288, 49_152)
    assert rungs_up_to(12_288, 196_607) == (12_288,)
    assert rungs_up_to(1000, 10) == (1000,), "there is one at least"


@given(st.integers(1, 10**9), st.integers(1, 10**12))
def test_any_rungs(first: int, retraining: int) -> None:
    rungs = rungs_up_to(first, retraining)
    assert all(above == ETA * below for below, above in pairwise(rungs))
    assert len(rungs) == 1 or rungs[-1] * ETA <= retraining
    assert rungs[-1] * ETA * ETA > retraining, "one more would be too long"


def test_every_rung_spends_alike_and_a_fifth_is_held_back() -> None:
    found = plan_bracket(1_000_000, (10_000, 40_000), 1000)
    assert (found.trials, found.rung_candidates) == (80, (40, 10))
    assert (found.planned_tokens, found.reserve_tokens) == (800_000, 200_000)


def test_what_a_small_space_leaves_goes_to_the_rung_above() -> None:
    found = plan_bracket(1_000_000, (10_000, 40_000), 20)
    assert (found.trials, found.rung_candidates) == (20, (20, 15))


def test_a_rung_that_too_few_would_reach_is_left_out_unless_it_was_asked_for() -> None:
    found = plan_bracket(400_000, (10_000, 100_000), 1000)
    assert (found.rung_tokens, found.rung_candidates) == ((10_000,), (32,))
    asked = plan_bracket(400_000, (10_000, 100_000), 1000, every_rung=True)
    assert (asked.rung_tokens, asked.rung_candidates) == ((10_000, 100_000), (16, 1))


@given(
    st.integers(1, 10**8),
    st.lists(st.integers(100, 10**6), min_size=1, max_size=4, unique=True).map(sorted),
    st.integers(1, 500),
    st.none() | st.integers(1, 100),
    st.booleans(),
)
def test_any_bracket_keeps_within_its_tokens(
    tokens: int, rungs: list[int], architectures: int, trials: int | None, every_rung: bool
) -> None:
    try:
        found = plan_bracket(tokens, rungs, architectures, trials, every_rung)
    except InputError as error:
        least = int(error.remedy.split()[2].rstrip(","))
        assert least > tokens
        plan_bracket(least, rungs, architectures, trials, every_rung)
        return
    candidates = [found.trials, *found.rung_candidates]
    assert candidates == sorted(candidates, reverse=True)
    assert candidates[0] <= architectures
    assert candidates[-1] >= 1
    assert tokens_spent(found.rung_tokens, found.rung_candidates) + found.reserve_tokens == tokens
    assert found.reserve_tokens >= tokens // 5
    assert list(found.rung_tokens) == rungs[: len(found.rung_tokens)]
    assert not every_rung or list(found.rung_tokens) == rungs


@given(st.integers(4, 1000), st.lists(st.integers(1, 10**6), min_size=1, max_size=4, unique=True).map(sorted))
def test_tokens_for_so_many_candidates_give_no_fewer(first: int, rungs: list[int]) -> None:
    found = plan_bracket(tokens_for(first, rungs), rungs, 10**6, every_rung=True)
    assert found.rung_candidates[0] >= first
    if first * rungs[0] >= rungs[-1]:
        assert found.rung_candidates[0] == first
