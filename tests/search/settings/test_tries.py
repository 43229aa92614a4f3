"""Architectures by hand in a search: tried first, distilled in any case, and joined to a run that exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from search.rungs.evaluation import BY_HAND, SEARCH
from search.rungs.loop import Search, SearchTask
from search.rungs.rung import Rung
from search.settings.costs import Costs, tried_architectures, workload_of
from search.terminal.console import Console
from space.axes.architecture import Architecture
from space.enumeration.hand_made import baselines
from space.input_error import InputError
from tests.search.synthetic import (
    Evaluator,
    counted,
    demo_map,
    demo_space,
    evaluation,
    open_rungs_in,
    records_of,
    run_config,
)

COSTS = Costs(demo_map(), workload_of("cpu"), 4)
HAND_MADE = baselines(demo_space(), demo_map().teacher)
#: Not in the space: its neurons are no multiple of anything, nor is the row with its other sizes like it.
ODD = replace(demo_space().architectures[5], mlp=demo_space().architectures[5].mlp + 3)
#: Sizes of a free axis that no row has.
OFF_GRID = tried_architectures(["hidden=108"], COSTS, demo_space(), {}, {})[0]


def search(
    tries: list[Architecture], storage: BaseStorage | None = None, **changes: object
) -> tuple[list[Rung], Evaluator]:
    config = run_config(**changes)
    rungs, evaluator = open_rungs_in(storage or InMemoryStorage(), config, demo_space()), Evaluator()
    Search(SearchTask(config, demo_space(), HAND_MADE, tries), rungs, evaluator, Console(quiet=True)).run()
    return rungs, evaluator


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "qmc", "random"])
def test_they_come_first_and_are_distilled_with_the_rest(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.rungs.sampler.START_UP", 3)
    monkeypatch.setattr("search.rungs.loop.START_UP", 3)
    assert OFF_GRID not in demo_space().architectures
    assert ODD not in demo_space().architectures
    rungs, _ = search([ODD, OFF_GRID], sampler=sampler, trials=16, rung_candidates=(8, 3))
    assert [rung.count() for rung in rungs] == [16, 8, 3]
    first = [(record.origin, record.architecture) for record in rungs[0].records()[:5]]
    assert first == [*HAND_MADE.items(), (BY_HAND, ODD), (BY_HAND, OFF_GRID)]
    above = {record.architecture: record.origin for record in rungs[1].records()}
    assert above[ODD] == above[OFF_GRID] == BY_HAND
    assert all(
        record.evaluation == evaluation(record.architecture, record.rung) for record in records_of(rungs)
    )
    for trial in rungs[0].study.get_trials()[3:5]:
        assert trial.user_attrs["parameters"] == counted().of(ODD if trial.number == 3 else OFF_GRID)


def test_one_that_is_a_baseline_is_tried_as_that() -> None:
    rungs, evaluator = search([HAND_MADE["uniform"]])
    tried = [record for record in rungs[0].records() if record.architecture == HAND_MADE["uniform"]]
    assert [record.origin for record in tried] == ["uniform"]
    assert len(evaluator.asked) == len(set(evaluator.asked))


@pytest.mark.parametrize("kind", ["memory", "journal"])
def test_joined_to_a_run_that_is_complete_they_alone_are_evaluated(kind: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/s.journal"
    kept = InMemoryStorage()

    def storage() -> BaseStorage:
        return kept if kind == "memory" else JournalStorage(JournalFileBackend(path))

    before = records_of(search([], storage())[0])
    rungs, evaluator = search([ODD, OFF_GRID], storage())
    assert sorted(evaluator.asked) == sorted([(0, ODD), (0, OFF_GRID), (1, ODD), (1, OFF_GRID)])
    assert [record for record in records_of(rungs) if record.origin != BY_HAND] == before
    assert [rung.count() for rung in rungs] == [14, 8, 3]
    again, evaluator = search([ODD, OFF_GRID], storage())
    assert evaluator.asked == []
    assert records_of(again) == records_of(rungs)


def test_one_that_the_search_left_behind_at_rung_0_goes_up() -> None:
    storage = InMemoryStorage()
    rungs, _ = search([], storage, trials=20)
    left = next(r for r in rungs[0].records() if r.architecture not in rungs[1].entered())
    assert left.origin == SEARCH
    rungs, evaluator = search([left.architecture], storage, trials=20)
    assert evaluator.asked == [(1, left.architecture)]
    [told] = [record for record in rungs[1].records() if record.architecture == left.architecture]
    assert told.origin == BY_HAND


def test_a_worker_that_knows_nothing_of_it_can_take_it() -> None:
    """Everything that is needed stands in the trial: another worker goes on with it."""
    storage = InMemoryStorage()
    [first, *_] = open_rungs_in(storage, run_config(), demo_space())
    first.enter(OFF_GRID, BY_HAND)
    rungs, evaluator = search([], storage)
    assert evaluator.asked[0] == (0, OFF_GRID)
    assert (1, OFF_GRID) in evaluator.asked
    assert rungs[0].records()[0].architecture == OFF_GRID


def test_the_whole_space_may_be_tried_beside_them() -> None:
    space = demo_space()
    rungs, _ = search([ODD, OFF_GRID], trials=1000, rung_candidates=(4, 1))
    tried = [record.architecture for record in rungs[0].records()]
    assert len(tried) == len(set(tried)) == len(space)
    assert {ODD, OFF_GRID} < set(tried)


def test_each_is_taken_once_and_has_to_lie_within_the_bounds() -> None:
    found = tried_architectures(["hidden=108", "hidden=108"], COSTS, demo_space(), {}, {})
    assert found == [OFF_GRID]
    memory = COSTS.of(OFF_GRID, range(OFF_GRID.layers))["memory"]
    least = min(
        COSTS.of(one, range(one.layers))["memory"]
        for one in demo_space().architectures
        if one.layers == OFF_GRID.layers
    )
    assert tried_architectures(["hidden=108"], COSTS, demo_space(), {}, {"memory": memory}) == [OFF_GRID]
    with pytest.raises(InputError) as caught:
        tried_architectures(["hidden=108"], COSTS, demo_space(), {}, {"memory": least / 2})
    assert "with --try hidden=108 lie outside memory ≤ " in caught.value.values
    assert caught.value.remedy.startswith("Allow --max memory=")
