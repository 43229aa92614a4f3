"""A storage on a server that may be unreachable for a while: every operation is retried until it succeeds.

An operation whose answer was lost may have succeeded. Repeating a read or a set is harmless. Creating a trial
twice is not, so each trial carries a mark by which it is found; finishing a trial again with the same result
counts as done. If the answer to taking a trial from the queue was lost, it is taken for this process's, since
workers take decisions one at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from copy import copy
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar
from uuid import uuid4

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from evaluators.huggingface.library_output import short_message
from space.input_error import InputError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 600.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 5.0

R = TypeVar("R")


class Retry:
    """Retries operations on one server.

    Args:
        name: name of the storage, for messages.
        lost: exceptions that mean that the server is unreachable.
        seconds: how long to retry one operation.
    """

    def __init__(
        self,
        name: str,
        lost: type[Exception] | tuple[type[Exception], ...],
        seconds: float = RETRY_SECONDS,
    ) -> None:
        self.name, self.lost, self.seconds = name, lost, seconds
        self._away = False

    def call(self, call: Callable[[], R], again: Callable[[], R] | None = None) -> R:
        """Call until the server answers, and return the answer.

        Args:
            call: the operation.
            again: replaces ``call`` after its first failure; by default ``call`` itself.

        Raises:
            InputError: the server did not answer for ``seconds``.
        """
        failures: list[float] = []
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                answer = call()
            except self.lost as error:
                failures.append(time.monotonic())
                self._wait(error, wait, failures)
                call, wait = again or call, min(2 * wait, _LONGEST_WAIT_SECONDS)
                continue
            if self._away:
                self._away = False
                logger.warning("the storage answers again")
            return answer

    def _wait(self, error: Exception, wait: float, failures: Sequence[float]) -> None:
        """Wait and log it once; a single failure, such as a stale connection, is not logged."""
        text, minutes = short_message(getattr(error, "details", lambda: error)() or error), self.seconds / 60
        if failures[-1] - failures[0] + wait > self.seconds:
            raise InputError(
                "The Optuna storage has to stay reachable",
                f"{self.name} has not answered for {minutes:.0f} minutes: {text}",
                "Start its server and repeat the same command: nothing that was finished is lost",
            ) from None
        if len(failures) > 1 and not self._away:
            self._away = True
            logger.warning("the storage is not reachable, trying again for %.0f minutes: %s", minutes, text)
        time.sleep(wait)


_MARK = "slimsearch:created"

P = ParamSpec("P")


def _repeated(
    method: Callable[Concatenate[BaseStorage, P], R],
) -> Callable[Concatenate[ReconnectingStorage, P], R]:
    """Forward a method to the wrapped storage, with retries."""

    @wraps(method, updated=())  # else ``__isabstractmethod__`` would be copied
    def call(self: ReconnectingStorage, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[P, R] = getattr(self.storage, method.__name__)
        return self.retry.call(lambda: bound(*args, **kwargs))

    return call


class ReconnectingStorage(BaseStorage):
    """A storage that retries while its server is unreachable; in the end every method raises ``InputError``.

    Args:
        storage: the wrapped storage; thread-safe, as all of Optuna's are.
        retry: how to retry.
    """

    def __init__(self, storage: BaseStorage, retry: Retry) -> None:
        self.storage, self.retry = storage, retry

    create_new_study = _repeated(BaseStorage.create_new_study)
    delete_study = _repeated(BaseStorage.delete_study)
    set_study_user_attr = _repeated(BaseStorage.set_study_user_attr)
    set_study_system_attr = _repeated(BaseStorage.set_study_system_attr)
    get_study_id_from_name = _repeated(BaseStorage.get_study_id_from_name)
    get_study_name_from_id = _repeated(BaseStorage.get_study_name_from_id)
    get_study_directions = _repeated(BaseStorage.get_study_directions)
    get_study_user_attrs = _repeated(BaseStorage.get_study_user_attrs)
    get_study_system_attrs = _repeated(BaseStorage.get_study_system_attrs)
    get_all_studies = _repeated(BaseStorage.get_all_studies)
    set_trial_param = _repeated(BaseStorage.set_trial_param)
    set_trial_intermediate_value = _repeated(BaseStorage.set_trial_intermediate_value)
    set_trial_user_attr = _repeated(BaseStorage.set_trial_user_attr)
    set_trial_system_attr = _repeated(BaseStorage.set_trial_system_attr)
    get_trial_id_from_study_id_trial_number = _repeated(BaseStorage.get_trial_id_from_study_id_trial_number)
    get_trial = _repeated(BaseStorage.get_trial)
    get_all_trials = _repeated(BaseStorage.get_all_trials)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create exactly one trial, with a mark in its system attributes."""
        mark = uuid4().hex
        trial = create_trial(state=TrialState.RUNNING) if template_trial is None else copy(template_trial)
        trial.system_attrs = {**trial.system_attrs, _MARK: mark}

        def create() -> int:
            return self.storage.create_new_trial(study_id, trial)

        def find_or_create() -> int:
            trials = self.storage.get_all_trials(study_id, deepcopy=False)
            found = [one._trial_id for one in trials if one.system_attrs.get(_MARK) == mark]
            return found[0] if found else create()

        return self.retry.call(create, find_or_create)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set the state exactly once; return False if a trial to take from the queue is already taken."""

        def set_state() -> bool:
            return self.storage.set_trial_state_values(trial_id, state, values)

        def set_state_unless_set() -> bool:
            try:
                return set_state() or state is TrialState.RUNNING
            except UpdateFinishedTrialError:
                trial = self.storage.get_trial(trial_id)
                if trial.state is not state or (values is not None and trial.values != list(values)):
                    raise
                return True

        return self.retry.call(set_state, set_state_unless_set)

    def remove_session(self) -> None:
        """Close this thread's connections."""
        self.storage.remove_session()
