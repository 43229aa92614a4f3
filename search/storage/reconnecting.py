"""A storage on a server that may be away for a while: every operation is tried again until it answers.

An operation whose answer was lost may have been done all the same. To read or to set something twice does
no harm; to create a trial twice would, so each trial carries a mark that it is found by; and a trial that is
told the same twice was told once. Whether this process or another took a trial out of the queue cannot be
told apart; it is taken for this one, since workers take their decisions in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar
from uuid import uuid4

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.storage.patience import Patience

_MARK = "slimsearch:created"

P = ParamSpec("P")
R = TypeVar("R")


def _repeated(method: Callable[Concatenate[BaseStorage, P], R]) -> Callable[Concatenate[Reconnecting, P], R]:
    """The method of the storage within, tried until it answers."""

    @wraps(method, updated=())  # which would take over that the method is abstract
    def call(self: Reconnecting, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[P, R] = getattr(self.within, method.__name__)
        return self.patience.until_it_answers(lambda: bound(*args, **kwargs))

    return call


class Reconnecting(BaseStorage):
    """A storage that waits for its server.

    Args:
        within: the storage; thread-safe, as all of Optuna's are.
        patience: with its server.

    Every method raises ``InputError`` when that is at its end.
    """

    def __init__(self, within: BaseStorage, patience: Patience) -> None:
        self.within, self.patience = within, patience

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
        """Create one trial, marked in its system attributes."""
        mark = uuid4().hex
        trial = create_trial(state=TrialState.RUNNING) if template_trial is None else copy(template_trial)
        trial.system_attrs = {**trial.system_attrs, _MARK: mark}

        def create() -> int:
            return self.within.create_new_trial(study_id, trial)

        def find_or_create() -> int:
            trials = self.within.get_all_trials(study_id, deepcopy=False)
            found = [one._trial_id for one in trials if one.system_attrs.get(_MARK) == mark]
            return found[0] if found else create()

        return self.patience.until_it_answers(create, find_or_create)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set the state once; False if a trial that was to be taken out of the queue is not there."""

        def tell() -> bool:
            return self.within.set_trial_state_values(trial_id, state, values)

        def tell_unless_told() -> bool:
            try:
                return tell() or state is TrialState.RUNNING
            except UpdateFinishedTrialError:
                trial = self.within.get_trial(trial_id)
                if trial.state is not state or (values is not None and trial.values != list(values)):
                    raise
                return True

        return self.patience.until_it_answers(tell, tell_unless_told)

    def remove_session(self) -> None:
        """Close this thread's connections."""
        self.within.remove_session()
