"""A rung tells back what it was told, whatever storage holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from search.rungs.evaluation import SEARCH, Evaluation, FinishedTrial
from search.rungs.rung import Rung
from search.rungs.sampler import SpaceSampler, distributions
from search.settings.objectives import UNITS
from search.storage.storage import open_study
from space.axes.architecture import Architecture
from tests.search.synthetic import demo_space, evaluation

OBJECTIVES = ("loss", "latency")
FIRST, SECOND = demo_space().architectures[:2]


def open_rung(storage: BaseStorage) -> Rung:
    return Rung(1, open_study(storage, "name/r1", OBJECTIVES, UNITS, "a space"), demo_space(), OBJECTIVES)


def sampler() -> SpaceSampler:
    return SpaceSampler("random", demo_space(), None, 0, 0)


def begin(rung: Rung, trial: Trial | None) -> tuple[Trial, Architecture]:
    assert trial is not None
    return trial, rung.begin(trial, sampler())


def cut_off(rung: Rung, sizes: int) -> Trial:
    """A trial that the process left after settling so many sizes."""
    trial = rung.unfinished()
    assert trial is not None
    for name, one in list(distributions(demo_space()).items())[:sizes]:
        trial.suggest_int(name, one.low, one.high, step=one.step)
    return trial


STORAGES: dict[str, Callable[[Path], BaseStorage]] = {
    "memory": lambda folder: InMemoryStorage(),
    "sqlite": lambda folder: RDBStorage(f"sqlite:///{folder}/study.db"),
    "journal": lambda folder: JournalStorage(JournalFileBackend(f"{folder}/study.journal")),
}


def test_a_finished_trial_says_in_words_why_it_goes_no_further() -> None:
    """Optuna's dashboard shows attributes, and neither constraints nor what failed."""
    rung = open_rung(InMemoryStorage())
    rung.bounds = {"latency": evaluation(FIRST, 1).values["latency"] - 2.5}
    rung.enter(FIRST, "uniform")
    trial, _ = begin(rung, rung.unfinished())
    rung.tell(trial, evaluation(FIRST, 1))
    failed, _ = begin(rung, rung.ask(sampler()))
    rung.tell_failure(failed, "diverged: the loss is nan")
    rung.bounds = {}
    fine, _ = begin(rung, rung.ask(sampler()))
    rung.tell(fine, evaluation(SECOND, 1))
    told = [one.user_attrs for one in rung.study.trials]
    assert [one.get("feasible") for one in told] == [False, False, True]
    assert [one.get("reason") for one in told] == [
        "over the bound: latency by 2.5 ms",
        "diverged: the loss is nan",
        None,
    ]
    assert told[0]["label"] == FIRST.label
    assert told[0]["parameters"] == demo_space().parameters_of(FIRST)


@pytest.mark.parametrize("kind", STORAGES)
def test_what_was_told_is_read_back(kind: str, quick_disk: Path) -> None:
    rung = open_rung(STORAGES[kind](quick_disk))
    rung.enter(FIRST, "uniform")
    trial, _ = begin(rung, rung.unfinished())
    rung.tell(trial, evaluation(FIRST, 1))
    failed, tried = begin(rung, rung.ask(sampler()))
    rung.tell_failure(failed, "diverged: the loss is nan")
    again = rung if kind == "memory" else open_rung(STORAGES[kind](quick_disk))
    assert again.records() == [
        FinishedTrial(1, 0, FIRST, "uniform", evaluation(FIRST, 1), None),
        FinishedTrial(1, 1, tried, SEARCH, None, "diverged: the loss is nan", feasible=False),
    ]
    assert [record.label for record in again.complete()] == [FIRST.label]
    assert (again.count(), again.entered()) == (2, {FIRST, tried})


def test_the_study_holds_what_a_dashboard_shows() -> None:
    rung = open_rung(InMemoryStorage())
    trial, architecture = begin(rung, rung.ask(sampler()))
    rung.tell(trial, evaluation(architecture, 1))
    [shown] = rung.study.trials
    found = evaluation(architecture, 1).values
    assert shown.values == [found["loss"], found["latency"]]
    assert shown.params == {axis: architecture.sizes()[axis] for axis in shown.params}
    assert set(shown.params) == {"hidden", "heads", "kv_heads", "layers"}
    assert shown.user_attrs["label"] == architecture.label
    assert shown.user_attrs["mlp"] == architecture.mlp
    assert shown.user_attrs["parameters"] == demo_space().parameters_of(architecture)
    assert shown.user_attrs["origin"] == SEARCH
    assert shown.user_attrs["feasible"] is True


def test_a_failure_is_no_candidate_for_promotion() -> None:
    rung = open_rung(InMemoryStorage())
    trial, _ = begin(rung, rung.ask(sampler()))
    rung.tell_failure(trial, "out of memory: 2 GiB")
    [record] = rung.records()
    assert (record.evaluation, record.failure) == (None, "out of memory: 2 GiB")
    with pytest.raises(AssertionError, match="failed"):
        record.values(OBJECTIVES)
    assert rung.study.trials[0].state is TrialState.FAIL
    assert rung.study.best_trials == []


def test_an_architecture_enters_once() -> None:
    rung = open_rung(InMemoryStorage())
    for _ in range(2):
        rung.enter(FIRST, "depth")
        rung.enter(SECOND, SEARCH)
    assert (rung.count(), rung.entered()) == (2, {FIRST, SECOND})
    trial, architecture = begin(rung, rung.unfinished())
    assert architecture == FIRST
    rung.enter(FIRST, SEARCH)
    rung.tell(trial, evaluation(FIRST, 1))
    rung.enter(FIRST, SEARCH)
    assert rung.count() == 2
    assert rung.records()[0].origin == "depth"


@pytest.mark.parametrize("sizes", range(5))
def test_an_architecture_enters_once_though_its_trial_was_cut_off(sizes: int) -> None:
    rung = open_rung(InMemoryStorage())
    rung.enter(FIRST, "depth")
    cut_off(rung, sizes)
    rung.enter(FIRST, "depth")
    assert (rung.count(), rung.entered()) == (1, {FIRST})


@pytest.mark.parametrize("sizes", range(5))
def test_a_trial_that_was_cut_off_comes_before_those_that_wait(sizes: int) -> None:
    rung = open_rung(InMemoryStorage())
    rung.enter(FIRST, "depth")
    rung.enter(SECOND, SEARCH)
    left = cut_off(rung, sizes)
    trial, architecture = begin(rung, rung.unfinished())
    assert (trial.number, architecture) == (left.number, FIRST)
    rung.tell(trial, evaluation(FIRST, 1))
    _, architecture = begin(rung, rung.unfinished())
    assert architecture == SECOND


def test_nothing_is_unfinished_at_first_and_at_last() -> None:
    rung = open_rung(InMemoryStorage())
    assert rung.unfinished() is None
    trial, architecture = begin(rung, rung.ask(sampler()))
    rung.tell(trial, Evaluation({"loss": 1.0, "latency": 2.0}))
    assert rung.unfinished() is None
    assert rung.records()[0].values(("latency", "loss")) == [2.0, 1.0]
    assert rung.records()[0].architecture == architecture
