"""Who goes up and when: quotas, baselines first, one in four by lot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from search.rungs.bracket import Bracket, best_first
from search.rungs.evaluation import SEARCH, Evaluation
from search.rungs.rung import Rung
from space.axes.architecture import Architecture
from tests.search.rungs.test_rung import begin
from tests.search.synthetic import demo_space, open_rungs_in, run_config

OBJECTIVES = ("loss", "latency")
SPACE = demo_space().architectures
Values = tuple[float, float]


def bracket(*candidates: int, seed: int = 0) -> Bracket:
    config = run_config(rung_tokens=tuple(1000 * i for i in range(1, len(candidates))))
    rungs = open_rungs_in(InMemoryStorage(), config, demo_space())
    return Bracket(rungs, candidates, OBJECTIVES, seed)


def finish(rung: Rung, architecture: Architecture, values: Values | None, origin: str = SEARCH) -> None:
    """A trial from its queue to its end."""
    rung.enter(architecture, origin)
    trial, begun = begin(rung, rung.unfinished())
    assert begun == architecture
    if values is None:
        rung.tell_failure(trial, "no luck")
    else:
        rung.tell(trial, Evaluation(dict(zip(OBJECTIVES, values, strict=True))))


def promote(
    one: Bracket, evaluate: Callable[[Architecture], Values | None]
) -> list[tuple[int, Architecture]]:
    """Everybody who goes up, in order, each finished before the next goes."""
    gone: list[tuple[int, Architecture]] = []
    while (due := one.promotion()) is not None:
        index, record = due
        finish(one.rungs[index], record.architecture, evaluate(record.architecture), record.origin)
        gone.append((index, record.architecture))
    return gone


def values_of(architecture: Architecture) -> Values:
    """No two alike, and the more layers the better and the slower."""
    place = SPACE.index(architecture)
    return -architecture.layers - place / 1000, architecture.layers + place / 1000


def test_nobody_is_due_before_anybody_is_finished() -> None:
    one = bracket(4, 2)
    assert one.promotion() is None
    assert one.wants_more()
    one.rungs[0].enter(SPACE[0], SEARCH)
    assert one.promotion() is None


def test_once_half_of_a_rung_is_finished_the_next_takes_in_its_share_of_the_rest() -> None:
    one, entered = bracket(8, 4, 1), []
    for architecture in SPACE[:8]:
        finish(one.rungs[0], architecture, values_of(architecture))
        promote(one, values_of)
        entered.append((one.rungs[1].count(), one.rungs[2].count()))
    assert entered == [(0, 0)] * 4 + [(1, 0), (2, 0), (3, 0), (4, 1)]
    assert not one.wants_more()


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=2), st.data())
def test_quotas_are_met_exactly_when_nobody_fails(more: list[int], data: st.DataObject) -> None:
    candidates = [data.draw(st.integers(max(more), 12)), *sorted(more, reverse=True)]
    one = bracket(*candidates)
    for architecture in SPACE[: candidates[0]]:
        finish(one.rungs[0], architecture, values_of(architecture))
        promote(one, values_of)
    assert [rung.count() for rung in one.rungs] == candidates
    assert [len(rung.entered()) for rung in one.rungs] == candidates, "nobody is at a rung twice"


def test_the_best_go_up_and_every_fourth_to_rung_1_is_drawn_by_lot() -> None:
    drawn = set()
    for seed in range(6):
        one = bracket(12, 8, seed=seed)
        for architecture in SPACE[:12]:
            finish(one.rungs[0], architecture, values_of(architecture))
        waiting = list(SPACE[:12])
        for place, (_, architecture) in enumerate(promote(one, values_of)):
            best = waiting[best_first([values_of(a) for a in waiting])[0]]
            if place % 4 == 3:
                drawn.add(architecture)
            else:
                assert architecture == best
            waiting.remove(architecture)
    assert len(drawn) > 4, "the lot depends on the seed and the place"


@pytest.mark.parametrize("seed", range(4))
def test_to_higher_rungs_only_the_best_go_up(seed: int) -> None:
    one = bracket(8, 8, 6, seed=seed)
    for architecture in SPACE[:8]:
        finish(one.rungs[0], architecture, values_of(architecture))
        finish(one.rungs[1], architecture, values_of(architecture))
    waiting = list(SPACE[:8])
    for _, architecture in promote(one, values_of):
        assert architecture == waiting[best_first([values_of(a) for a in waiting])[0]]
        waiting.remove(architecture)
    assert len(waiting) == 2


def test_baselines_go_to_rung_1_before_better_candidates_and_no_further_for_being_baselines() -> None:
    one = bracket(4, 3, 1)
    for architecture, origin, loss in zip(
        SPACE[:4], (SEARCH, "uniform", SEARCH, "depth"), (1.0, 9.0, 2.0, 8.0), strict=True
    ):
        finish(one.rungs[0], architecture, (loss, loss), origin)
    gone = promote(one, lambda architecture: values_of(SPACE[0]) if architecture == SPACE[0] else (9.0, 99.0))
    assert [(index, SPACE.index(a)) for index, a in gone] == [(1, 3), (1, 1), (1, 0), (2, 0)]
    assert [record.origin for record in one.rungs[1].records()] == ["depth", "uniform", SEARCH]


@pytest.mark.parametrize("failures", [1, 3, 4])
def test_failures_do_not_go_up_and_are_not_made_up_for(failures: int) -> None:
    one = bracket(4, 3)
    for place, architecture in enumerate(SPACE[:4]):
        finish(one.rungs[0], architecture, None if place < failures else values_of(architecture))
    gone = promote(one, lambda architecture: None)
    assert len(gone) == min(3, 4 - failures)
    assert one.rungs[1].complete() == []
    assert not one.wants_more()


def misled(losses_above: Callable[[int], float], reserve: int, pairs: int = 8) -> Bracket:
    """Twelve candidates at rung 0 in order of their loss, and so many of them at rung 1."""
    one = replace(bracket(12, 8), rung_tokens=(1000,), reserve_tokens=reserve)
    for place, architecture in enumerate(SPACE[:12]):
        finish(one.rungs[0], architecture, (float(place), 1.0))
    for place, architecture in enumerate(SPACE[:pairs]):
        finish(one.rungs[1], architecture, (losses_above(place), 1.0))
    return one


def test_where_a_rung_misleads_more_go_up_as_far_as_the_reserve_goes() -> None:
    for reserve, quota in ((0, 8), (999, 8), (2000, 10), (4000, 12), (9000, 12)):
        assert misled(lambda place: -place, reserve).quotas() == [12, quota]
    one = misled(lambda place: -place, 2000)
    assert len(promote(one, values_of)) == 2
    assert one.rungs[1].count() == 10


def test_an_order_that_holds_carries_nobody_up_beyond_the_plan() -> None:
    assert misled(lambda place: place, 9000).quotas() == [12, 8]
    assert promote(misled(lambda place: place, 9000), values_of) == []


def test_of_a_few_candidates_nothing_is_said() -> None:
    assert misled(lambda place: -place, 9000, pairs=7).quotas() == [12, 8]


def test_who_went_up_beyond_the_plan_stays_counted_when_the_order_turns_out_to_hold() -> None:
    one = misled(lambda place: place, 9000)
    for place in (8, 9):
        finish(one.rungs[1], SPACE[place], (float(place), 1.0))
    assert one.quotas() == [12, 10]
    assert one.promotion() is None


def test_another_rule_and_no_lot() -> None:
    one = replace(bracket(8, 4), rule=lambda records: list(range(len(records))), random_every=0)
    for architecture in SPACE[:8]:
        finish(one.rungs[0], architecture, values_of(architecture))
    assert [architecture for _, architecture in promote(one, values_of)] == list(SPACE[:4])
