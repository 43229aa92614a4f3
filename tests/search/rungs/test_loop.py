"""The whole search on an evaluator that knows the answers: quotas, failures, and being killed anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

from search.rungs.evaluation import SEARCH, Evaluation, FinishedTrial
from search.rungs.rung import Rung
from search.rungs.sampler import START_UP
from search.settings.config import RunConfig
from space.enumeration.hand_made import baselines
from space.enumeration.search_space import SearchSpace
from tests.search.synthetic import (
    Evaluator,
    demo_map,
    demo_space,
    evaluation,
    make_search,
    open_rungs_in,
    records_of,
    run_config,
)

#: Models after two trials instead of ten, so that a short search has them.
EARLY = 2
WRITES = (
    "create_new_study",
    "set_study_system_attr",
    "create_new_trial",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_user_attr",
    "set_trial_system_attr",
)


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    return install(Evaluator(), monkeypatch)


@pytest.fixture
def early_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.rungs.sampler.START_UP", EARLY)
    monkeypatch.setattr("search.rungs.loop.START_UP", EARLY)


def install(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    monkeypatch.setattr("tests.search.synthetic.default_evaluator", evaluator)
    return evaluator


def run(
    config: RunConfig, space: SearchSpace | None = None, storage: BaseStorage | None = None
) -> list[Rung]:
    """A search to its end, from wherever the storage has it."""
    space = space or demo_space()
    rungs = open_rungs_in(storage or InMemoryStorage(), config, space)
    make_search(config, space, rungs).run()
    return rungs


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_quotas_are_met_and_nobody_is_evaluated_twice_at_a_rung(sampler: str, evaluator: Evaluator) -> None:
    rungs = run(run_config(sampler=sampler, trials=24, rung_candidates=(12, 4)))
    assert [rung.count() for rung in rungs] == [24, 12, 4]
    assert max(Counter(evaluator.asked).values()) == 1
    told = {(record.rung, record.architecture) for record in records_of(rungs)}
    assert told == set(evaluator.asked)
    assert all(r.evaluation == evaluation(r.architecture, r.rung) for r in records_of(rungs))
    for below, above in pairwise(rungs):
        assert above.entered() < below.entered()


def test_short_distillation_begins_before_rung_0_is_full(evaluator: Evaluator) -> None:
    run(run_config(trials=24, rung_candidates=(12, 4)))
    rungs_in_order = [rung for rung, _ in evaluator.asked]
    assert rungs_in_order[:16] == [0] * 13 + [1, 0, 1], "when more than half of it is done"
    assert rungs_in_order[: rungs_in_order.index(2)].count(0) == 20


def test_every_baseline_is_tried_first_and_reaches_rung_1(evaluator: Evaluator) -> None:
    rungs = run(run_config(trials=16, rung_tokens=(1000,), rung_candidates=(8,)))
    hand_made = baselines(demo_space(), demo_map().teacher)
    assert len(hand_made) == 3
    first = [(record.origin, record.architecture) for record in rungs[0].records()[:3]]
    assert first == list(hand_made.items())
    above = {record.origin: record.architecture for record in rungs[1].records()}
    assert above.items() >= hand_made.items()
    assert {record.origin for record in rungs[0].records()[3:]} == {SEARCH}


@pytest.mark.parametrize(
    "objectives",
    [("loss",), ("loss", "latency", "memory"), ("latency", "loss"), ("flops", "loss", "parameters")],
)
def test_any_objectives_are_searched(
    objectives: tuple[str, ...], evaluator: Evaluator, early_models: None
) -> None:
    rungs = run(run_config(objectives=objectives))
    assert [rung.count() for rung in rungs] == [12, 6, 3]
    [best, *_] = rungs[-1].study.best_trials
    architecture = next(r.architecture for r in rungs[-1].records() if r.number == best.number)
    assert best.values == [evaluation(architecture, 2).values[name] for name in objectives]


@pytest.mark.parametrize(("trials", "baselines_beside"), [(1, 2), (2, 1), (3, 0)])
def test_baselines_are_tried_even_if_fewer_trials_are_asked(
    trials: int, baselines_beside: int, evaluator: Evaluator
) -> None:
    rungs = run(run_config(trials=trials, rung_tokens=(1000,), rung_candidates=(trials,)))
    assert [rung.count() for rung in rungs] == [trials + baselines_beside, trials]


def test_more_trials_than_architectures_try_the_whole_space(evaluator: Evaluator) -> None:
    space = demo_space(tolerance=0.004)
    rungs = run(run_config(trials=1000, rung_candidates=(900, 1)), space)
    assert [rung.count() for rung in rungs] == [len(space.architectures), len(space.architectures), 1]
    assert rungs[0].entered() == set(space.architectures)


def test_a_space_of_one_architecture(evaluator: Evaluator) -> None:
    whole = demo_space()
    space = replace(whole, table=whole.table[:1], parameters=whole.parameters[:1])
    rungs = run(run_config(), space)
    assert [[r.architecture for r in rung.records()] for rung in rungs] == [list(space.architectures)] * 3


def test_a_failure_is_recorded_with_its_reason_and_the_search_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = install(Evaluator(fails=lambda architecture, rung: architecture.layers % 2 == 1), monkeypatch)
    rungs = run(run_config(trials=24, rung_candidates=(8, 2)))
    assert [rung.count() for rung in rungs] == [24, 8, 2]
    failed = [record for record in rungs[0].records() if record.evaluation is None]
    assert {record.failure for record in failed} == {"no luck at rung 0"}
    assert 4 < len(failed) < 20
    assert not {record.architecture for record in failed} & rungs[1].entered()
    assert len(evaluator.asked) == 34
    assert len(rungs[0].study.get_trials(states=(optuna.trial.TrialState.FAIL,))) == len(failed)


@pytest.mark.parametrize(("rung", "counts"), [(0, [12, 0, 0]), (1, [12, 6, 0]), (2, [12, 6, 3])])
def test_a_search_ends_if_everybody_fails_at_a_rung(
    rung: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Evaluator(fails=lambda architecture, at: at == rung), monkeypatch)
    rungs = run(run_config())
    assert [one.count() for one in rungs] == counts
    assert rungs[rung].complete() == []
    assert {record.failure for record in rungs[rung].records()} == {f"no luck at rung {rung}"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), AssertionError("an invariant")])
def test_what_is_no_fault_of_a_candidate_ends_the_run_and_a_later_one_goes_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(Evaluator):
        def evaluate(self, *_: object) -> Evaluation:
            raise error

    storage = InMemoryStorage()
    install(Breaks(), monkeypatch)
    with pytest.raises(type(error)):
        run(run_config(), storage=storage)
    install(Evaluator(), monkeypatch)
    assert records_of(run(run_config(), storage=storage)) == records_of(run(run_config()))


def test_the_seed_decides_the_search(evaluator: Evaluator) -> None:
    once, again, other = (records_of(run(run_config(seed=seed))) for seed in (0, 0, 1))
    assert once == again
    assert once != other


@pytest.mark.parametrize("seed", [42_949, 123_456_789, 2**32 - 1])
def test_any_seed_will_do(seed: int, evaluator: Evaluator) -> None:
    assert run(run_config(seed=seed, trials=START_UP + 2))[0].count() == START_UP + 2


def killed_at_each_evaluation(
    config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[FinishedTrial]:
    """The records of a search whose every evaluation is begun by a process that is killed in it."""
    space = demo_space()
    while True:
        rungs = open_rungs_in(RDBStorage(f"sqlite:///{folder}/study.db"), config, space)
        for stop_at in (0, 1):
            install(Evaluator(stop_at=stop_at), monkeypatch)
            try:
                make_search(config, space, rungs).run()
            except KeyboardInterrupt:
                continue
            return records_of(rungs)


@pytest.mark.slow
def test_killed_in_every_evaluation_of_one_search(
    quick_disk: Path, monkeypatch: pytest.MonkeyPatch, early_models: None
) -> None:
    config = run_config(trials=8, rung_candidates=(4, 2))
    killed = killed_at_each_evaluation(config, quick_disk, monkeypatch)
    install(Evaluator(), monkeypatch)
    assert killed == records_of(run(config))


@pytest.mark.parametrize(
    "stop_at", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in range(9) if n != 4)]
)
def test_killed_once_in_an_evaluation_and_reopened(
    stop_at: int, quick_disk: Path, monkeypatch: pytest.MonkeyPatch, early_models: None
) -> None:
    config = run_config(trials=6, rung_tokens=(1000,), rung_candidates=(3,))
    url = f"sqlite:///{quick_disk}/study.db"
    before, after = Evaluator(stop_at=stop_at), Evaluator()
    install(before, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(config, storage=RDBStorage(url))
    install(after, monkeypatch)
    continued = records_of(run(config, storage=RDBStorage(url)))
    assert len(before.asked) + len(after.asked) == 9, "no finished evaluation is repeated"
    assert continued == records_of(run(config))


def dying(storage: InMemoryStorage, write: int) -> InMemoryStorage:
    """A storage that lets the process die at a write, counted from 0, once."""
    left = [write]

    def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return inner(*args, **kwargs)

        return call

    for name in WRITES:
        setattr(storage, name, counted(getattr(storage, name)))
    return storage


@pytest.mark.parametrize("sampler", [pytest.param("tpe", marks=pytest.mark.slow), "nsga2"])
@pytest.mark.slow
def test_killed_at_any_write(sampler: str, evaluator: Evaluator, early_models: None) -> None:
    config = run_config(sampler=sampler, trials=6, rung_tokens=(1000,), rung_candidates=(3,))
    expected = records_of(run(config))
    for write in range(1000):
        storage = dying(InMemoryStorage(), write)
        try:
            run(config, storage=storage)
            break
        except KeyboardInterrupt:
            assert records_of(run(config, storage=storage)) == expected, f"killed before write {write}"
    assert write > 100, "every trial takes several writes"
