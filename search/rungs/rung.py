"""One rung of the search as an Optuna study: asking for trials, finishing them, and reading them.

Optuna neither prunes multi-objective trials nor amends finished ones, so each rung is a study of its own.
Only this module writes trials. An architecture has one trial per rung. Two workers that do not share a file
lock can create one each; then the first that is finished counts, and the other is its duplicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from search.rungs.claims import LEASE, Claims
from search.rungs.evaluation import BY_HAND, SEARCH, Evaluation, FinishedTrial
from search.rungs.sampler import architecture_of, distributions, known_params, params_of
from search.settings.objectives import Bounds, excess_in_words
from search.storage.workers import Workers
from space.axes.architecture import Architecture, Axis
from space.enumeration.search_space import SearchSpace

_DUPLICATE = "twin"


def evaluation_of(trial: FrozenTrial) -> Evaluation | None:
    """Return the evaluation stored in a trial; None unless it is complete."""
    if trial.state is not TrialState.COMPLETE:
        return None
    attributes: dict[str, Any] = trial.user_attrs
    return Evaluation(
        attributes["values"],
        attributes["tokens"],
        [(tokens, loss) for tokens, loss in attributes["curve"]],
        attributes["seconds"],
        attributes["details"],
    )


def without_duplicates(
    known: Sequence[tuple[FrozenTrial, Architecture | None]],
) -> list[tuple[FrozenTrial, Architecture | None]]:
    """Return a rung's trials without duplicates: per architecture the first complete one, else the first.

    Args:
        known: trials in order, with their architectures; None for one without sizes yet.
    """
    first: dict[Architecture, tuple[bool, int]] = {}
    for trial, architecture in known:
        if architecture is not None:
            place = (trial.state is not TrialState.COMPLETE, trial.number)
            first[architecture] = min(place, first.get(architecture, place))
    return [
        (trial, architecture)
        for trial, architecture in known
        if architecture is None or first[architecture][1] == trial.number
    ]


class Rung:
    """One rung: an Optuna study of the architectures of a space.

    Args:
        index: the rung's number, from 0.
        study: an open study.
        space: the architectures.
        objectives: names of the objectives, in the order of the study.
        claims: this worker's; None if there is only one worker.
        bounds: upper bounds on objectives that are measured for each candidate.
    """

    def __init__(
        self,
        index: int,
        study: optuna.Study,
        space: SearchSpace,
        objectives: tuple[str, ...],
        claims: Claims | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        self.index, self.study, self.space, self.objectives = index, study, space, objectives
        self.claims, self.bounds = claims or Claims(Workers()), bounds or {}
        self._free = set(space.free_axes)
        self._architectures: dict[int, Architecture] = {}
        self._records: dict[int, FinishedTrial] = {}
        self._caching = False
        self._cached: list[FrozenTrial] | None = None

    @contextmanager
    def cached_trials(self) -> Iterator[None]:
        """Within the context, cache the trials; read them again only after this rung writes one.

        For decisions, which read the trials many times while the lock keeps other workers from deciding.
        """
        self._caching, self._cached = True, None
        try:
            yield
        finally:
            self._caching, self._cached = False, None

    def records(self) -> list[FinishedTrial]:
        """Return every finished trial, in order."""
        return [self._record(trial) for trial, _ in self._trials() if trial.state.is_finished()]

    def complete(self) -> list[FinishedTrial]:
        """Return every trial with a loss of this rung, in order; see ``FinishedTrial.scored``."""
        return [record for record in self.records() if record.scored]

    def feasible(self) -> list[FinishedTrial]:
        """Return every trial that did not fail and lies within the bounds, in order."""
        return [record for record in self.records() if record.feasible]

    def entered(self) -> set[Architecture]:
        """Return the architectures that have a trial at this rung, finished or not."""
        return {architecture for _, architecture in self._trials() if architecture is not None}

    def count(self) -> int:
        """Return the number of trials of any state."""
        return len(self._trials())

    def has_unfinished(self) -> bool:
        """Whether a trial is queued or running."""
        return any(not trial.state.is_finished() for trial, _ in self._trials())

    def enter(self, architecture: Architecture, origin: str) -> None:
        """Queue an architecture, unless it already has a trial."""
        if architecture not in self.entered():
            self._cached = None
            others = {axis: size for axis, size in architecture.sizes().items() if axis not in self._free}
            self.study.enqueue_trial(
                params_of(architecture, self.space), user_attrs={"origin": origin, **others}
            )

    def unfinished(self) -> Trial | None:
        """Return an existing trial to work on: one that its worker abandoned, else a queued one, else None.

        Running trials whose worker hangs are finished as failed.
        """
        trials = self._all()
        for trial in trials:
            if trial.state is not TrialState.RUNNING:
                continue
            running = Trial(self.study, trial._trial_id)
            if trial.user_attrs.get(_DUPLICATE) is not None:
                self._finish_duplicate(running, trial.user_attrs[_DUPLICATE])
            elif (reason := self.claims.hangs(trial)) is not None:
                self.tell_failure(running, reason)
            elif self.claims.abandoned(trial):
                return running
        self._cached = None
        return self.study.ask() if any(trial.state is TrialState.WAITING for trial in trials) else None

    def ask(self, sampler: BaseSampler) -> Trial:
        """Return a new trial, whose sizes the sampler chooses in ``begin``."""
        self.study.sampler, self._cached = sampler, None
        return self.study.ask()

    def begin(self, trial: Trial, sampler: BaseSampler) -> Architecture:
        """Claim a trial and fix its sizes; an interrupted trial keeps the sizes that it had.

        Args:
            trial: from ``unfinished`` or ``ask``.
            sampler: proposes the sizes that are not fixed yet.
        """
        trial.set_user_attr(LEASE, self.claims.lease(self._frozen(trial), self._all()))
        self.study.sampler, self._cached = sampler, None
        fixed = known_params(self._frozen(trial))
        params = {
            name: trial.suggest_int(name, one.low, one.high, step=one.step)
            for name, one in distributions(self.space, [fixed]).items()
        }
        architecture = self._architecture(self._frozen(trial))
        assert architecture is not None, "all sizes are settled"
        trial.set_user_attr("label", architecture.label)
        for axis, size in architecture.sizes().items():
            if axis not in params:
                trial.set_user_attr(axis, size)
        trial.set_user_attr("parameters", self.space.parameters_of(architecture))
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", SEARCH)
        return architecture

    def finish_without_evaluation(self, trial: Trial) -> bool:
        """Finish a trial from ``begin`` that needs no evaluation; return whether it was finished.

        It is if another trial of the same architecture counts, or if too many workers crashed in it.
        """
        own = self._frozen(trial)
        architecture = self._architecture(own)
        counts = next(one for one, other in self._trials() if other == architecture)
        if counts.number != trial.number:
            self._finish_duplicate(trial, counts.number)
        elif (reason := self.claims.kills_workers(own)) is not None:
            self.tell_failure(trial, reason)
        else:
            return False
        return True

    def limit_seconds(self, trial: Trial) -> float:
        """Return the time limit of a trial from ``begin``."""
        return float(self._frozen(trial).user_attrs[LEASE]["limit_seconds"])

    def release(self, trial: Trial) -> None:
        """Give up the claim on a trial because this worker stops; any worker may resume it."""
        trial.set_user_attr(LEASE, None)

    def tell(self, trial: Trial, evaluation: Evaluation) -> None:
        """Finish a trial with its evaluation; no effect if another worker has finished it meanwhile."""
        over = self._constrained(trial, evaluation)
        found = {
            "feasible": not over,
            **({"over": over, "reason": excess_in_words(over)} if over else {}),
            "values": dict(evaluation.values),
            "tokens": evaluation.tokens,
            "curve": evaluation.curve,
            "seconds": evaluation.seconds,
            "details": dict(evaluation.details),
        }
        self._finish(trial, found, [evaluation.values[name] for name in self.objectives])

    def tell_failure(self, trial: Trial, reason: str) -> None:
        """Finish a trial as failed, with the reason."""
        self._finish(trial, {"feasible": False, "failure": reason, "reason": reason}, None)

    def _constrained(self, trial: Trial, evaluation: Evaluation) -> dict[str, float]:
        """Set Optuna's constraints, as shares of the bounds; return the excess over each in its unit.

        Optuna lets a constraint be set only once, so those that a crashed worker has set remain.
        """
        known = self._frozen(trial).constraints
        with suppress(UpdateFinishedTrialError):
            for name, most in self.bounds.items():
                if name not in known:
                    trial.set_constraint(name, evaluation.values[name] / most - 1)
        shares = {name: evaluation.values[name] / most - 1 for name, most in self.bounds.items()} | known
        return {name: share * self.bounds[name] for name, share in shares.items() if share > 0}

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    def _finish_duplicate(self, trial: Trial, number: int) -> None:
        reason = f"trial {number} has the same architecture"
        self._finish(trial, {_DUPLICATE: number, "feasible": False, "failure": reason}, None)

    def _finish(self, trial: Trial, attributes: Mapping[str, Any], values: Sequence[float] | None) -> None:
        state = TrialState.COMPLETE if values is not None else TrialState.FAIL
        self._cached = None
        try:
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
        except UpdateFinishedTrialError:
            return
        self.study.tell(trial.number, values, state=state, skip_if_finished=True)

    def _all(self) -> list[FrozenTrial]:
        if self._cached is not None:
            return self._cached
        trials = self.study.get_trials(deepcopy=False)
        self._cached = trials if self._caching else None
        return trials

    def _trials(self) -> list[tuple[FrozenTrial, Architecture | None]]:
        """Return every trial but duplicates, in order, with its architecture if its sizes are fixed."""
        return without_duplicates([(trial, self._architecture(trial)) for trial in self._all()])

    def _architecture(self, trial: FrozenTrial) -> Architecture | None:
        """Return a trial's architecture, with derived sizes from the space; None while sizes are missing."""
        if trial.number not in self._architectures:
            params = known_params(trial)
            if len(params) < len(self.space.free_axes):
                return None
            if trial.user_attrs.get("origin") == BY_HAND:
                sizes = {axis.value: trial.user_attrs.get(axis, 0) for axis in Axis} | params
                self._architectures[trial.number] = Architecture(**sizes)
            else:
                self._architectures[trial.number] = architecture_of(params, self.space)
        return self._architectures[trial.number]

    def _record(self, trial: FrozenTrial) -> FinishedTrial:
        if trial.number not in self._records:
            self._records[trial.number] = self._read(trial)
        return self._records[trial.number]

    def _read(self, trial: FrozenTrial) -> FinishedTrial:
        attributes: dict[str, Any] = trial.user_attrs
        evaluation = evaluation_of(trial)
        architecture = self._architecture(trial)
        assert architecture is not None, "a finished trial has all sizes"
        return FinishedTrial(
            self.index,
            trial.number,
            architecture,
            attributes.get("origin", SEARCH),
            evaluation,
            None if evaluation else attributes.get("failure", "ended without a reason"),
            evaluation is not None and attributes.get("feasible", True),
        )
