"""A storage whose answers get lost: the search does not notice, and nothing is done twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any

import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from search.storage.retry import ReconnectingStorage, Retry
from space.input_error import InputError
from tests.search.synthetic import demo_space, make_search, open_rungs_in, records_of, run_config

NAMES = sorted(BaseStorage.__abstractmethods__)


class LostError(Exception):
    """An answer was lost."""


class Losing(InMemoryStorage):
    """Loses answers.

    Args:
        fate: of each call in turn: lost ``before`` it was done, or ``after`` it; anything else is answered.
    """

    def __init__(self, fate: Iterator[str]) -> None:
        super().__init__()
        self.fate, self._inside = fate, False
        for name in NAMES:
            setattr(self, name, self._losing(getattr(self, name)))

    def _losing(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # Optuna's methods call one another
                return method(*args, **kwargs)
            fate = next(self.fate)
            if fate == "before":
                raise LostError(fate)
            self._inside = True
            try:
                answer = method(*args, **kwargs)
            finally:
                self._inside = False
            if fate == "after":
                raise LostError(fate)
            return answer

        return call


def by_chance(seed: int) -> Iterator[str]:
    """Two calls of three are lost, before or after."""
    rng = random.Random(seed)
    return iter(lambda: rng.choice(["before", "after", "answered"]), None)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited each time; nobody really waits, and the clock goes on all the same."""
    times: list[float] = []
    monkeypatch.setattr("search.storage.retry.time.sleep", times.append)
    monkeypatch.setattr("search.storage.retry.time.monotonic", lambda: sum(times))
    return times


def reconnecting(within: BaseStorage) -> ReconnectingStorage:
    return ReconnectingStorage(within, Retry("postgresql://host/name", LostError))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
@pytest.mark.parametrize("seed", range(3))
def test_a_search_whose_answers_are_lost_ends_as_if_none_had_been(
    seed: int, sampler: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.rungs.sampler.START_UP", 2)
    monkeypatch.setattr("search.rungs.loop.START_UP", 2)
    config, space = run_config(trials=8, rung_candidates=(4, 2), sampler=sampler), demo_space()
    undisturbed = make_search(config, space)
    undisturbed.run()
    rungs = open_rungs_in(reconnecting(Losing(by_chance(seed))), config, space)
    make_search(config, space, rungs).run()
    assert records_of(rungs) == records_of(undisturbed.rungs)
    assert [len(rung.study.trials) for rung in rungs] == [8, 4, 2]
    assert {trial.state for rung in rungs for trial in rung.study.trials} == {TrialState.COMPLETE}
    assert len(waits) > 200


def test_it_is_a_whole_storage() -> None:
    """Every method that Optuna may call is passed on, even if Optuna could put it together from others."""
    storage = reconnecting(InMemoryStorage())
    study = storage.create_new_study([StudyDirection.MINIMIZE], "name")
    trial = storage.create_new_trial(study)
    assert storage.get_trial_id_from_study_id_trial_number(study, 0) == trial
    storage.set_trial_intermediate_value(trial, 1, 2.0)
    storage.set_trial_system_attr(trial, "key", "value")
    assert storage.get_trial(trial).intermediate_values == {1: 2.0}
    assert storage.get_trial(trial).system_attrs["key"] == "value"
    assert storage.get_trial(trial).datetime_start is not None
    assert storage.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    assert storage.get_best_trial(study).value == 1.0
    storage.remove_session()
    storage.delete_study(study)
    assert storage.get_all_studies() == []


def test_a_template_keeps_what_it_says(waits: list[float]) -> None:
    storage = reconnecting(Losing(chain(["answered"], by_chance(0))))
    study = storage.create_new_study([StudyDirection.MINIMIZE] * 2, "name")
    template = create_trial(
        state=TrialState.WAITING, user_attrs={"origin": "a"}, system_attrs={"fixed_params": {"x": 1}}
    )
    created = [storage.create_new_trial(study, template) for _ in range(2)]
    assert template.system_attrs == {"fixed_params": {"x": 1}}
    trials = storage.get_all_trials(study)
    assert [trial._trial_id for trial in trials] == created
    for trial in trials:
        assert (trial.state, trial.user_attrs) == (TrialState.WAITING, {"origin": "a"})
        assert trial.system_attrs["fixed_params"] == {"x": 1}


@pytest.mark.parametrize(
    ("state", "values"), [(TrialState.COMPLETE, [2.0]), (TrialState.FAIL, None), (TrialState.RUNNING, None)]
)
def test_what_another_told_otherwise_is_not_taken_for_ones_own(
    state: TrialState, values: list[float] | None, waits: list[float]
) -> None:
    losing = Losing(repeat("answered"))
    storage = reconnecting(losing)
    study = storage.create_new_study([StudyDirection.MINIMIZE], "name")
    trial = storage.create_new_trial(study)
    losing.set_trial_state_values(trial, TrialState.COMPLETE, [1.0])
    losing.fate = chain(["before"], repeat("answered"))
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial, state, values)


def test_a_trial_in_other_hands_is_not_taken_out_of_the_queue(waits: list[float]) -> None:
    storage = reconnecting(InMemoryStorage())
    study = storage.create_new_study([StudyDirection.MINIMIZE], "name")
    trial = storage.create_new_trial(study, create_trial(state=TrialState.WAITING))
    taken = [storage.set_trial_state_values(trial, TrialState.RUNNING) for _ in range(2)]
    assert taken == [True, False]


def test_an_outage_is_said_once_and_its_end(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    storage = reconnecting(Losing(chain(["answered"], 9 * ["before"], repeat("answered"))))
    for _ in range(3):
        storage.get_all_studies()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the storage is not reachable, trying again for 10 minutes: before",
        "the storage answers again",
    ]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_a_single_failure_is_not_worth_a_word(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    reconnecting(Losing(iter(["after", "answered"]))).get_all_studies()
    assert len(waits) == 1
    assert caplog.records == []


def test_patience_ends_after_ten_minutes(waits: list[float]) -> None:
    storage = reconnecting(Losing(repeat("before")))
    with pytest.raises(InputError) as caught:
        storage.get_all_studies()
    assert str(caught.value) == (
        "The Optuna storage has to stay reachable; postgresql://host/name has not answered for 10 minutes: "
        "before. Start its server and repeat the same command: nothing that was finished is lost."
    )
    assert 590 < sum(waits) <= 600


def test_what_is_no_lost_answer_is_raised_at_once(waits: list[float]) -> None:
    with pytest.raises(KeyError):
        reconnecting(InMemoryStorage()).get_study_id_from_name("absent")
    assert waits == []
