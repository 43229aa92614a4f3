"""One rung of the search as a study of Optuna's: asking, telling, and reading what was told.

Optuna neither prunes trials of several objectives nor lets a finished trial be amended, so each
rung is a study of its own. This is the only place where trials are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from search.sampler import architecture_of, distributions, known_params, params_of
from space.architecture import Architecture
from space.search_space import SearchSpace

SEARCH = "search"


@dataclass(frozen=True)
class Evaluation:
    """What was found out about a candidate at a rung."""

    values: Mapping[str, float]
    """Every objective that was evaluated, by name."""
    tokens: int = 0
    """Spent on distillation."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(tokens, validation loss)."""
    seconds: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)
    """Other figures worth showing, with units in their names."""


@dataclass(frozen=True)
class Record:
    """One finished trial."""

    rung: int
    number: int
    architecture: Architecture
    origin: str
    """``search``, or the name of a baseline."""
    evaluation: Evaluation | None
    """None if it failed."""
    failure: str | None

    @property
    def label(self) -> str:
        """The architecture's short name."""
        return self.architecture.label

    def values(self, objectives: tuple[str, ...]) -> list[float]:
        """The objectives in order; the trial has to be complete."""
        assert self.evaluation is not None, f"{self.label} failed"
        return [self.evaluation.values[name] for name in objectives]


class Rung:
    """A study of Optuna's and its place among the rungs."""

    def __init__(
        self, index: int, study: optuna.Study, space: SearchSpace, objectives: tuple[str, ...]
    ) -> None:
        self.index, self.study, self.space, self.objectives = index, study, space, objectives

    def records(self) -> list[Record]:
        """Every finished trial, in order."""
        trials = self.study.get_trials(deepcopy=False)
        return [self._record(trial) for trial in trials if trial.state.is_finished()]

    def complete(self) -> list[Record]:
        """Every trial that did not fail, in order."""
        return [record for record in self.records() if record.evaluation is not None]

    def entered(self) -> set[Architecture]:
        """The architectures that have a trial here, finished or not."""
        return {
            architecture_of(params, self.space)
            for trial in self.study.get_trials(deepcopy=False)
            if len(params := known_params(trial)) == len(distributions(self.space))
        }

    def count(self) -> int:
        """Trials of any state."""
        return len(self.study.get_trials(deepcopy=False))

    def enter(self, architecture: Architecture, origin: str) -> None:
        """Put an architecture in the queue, unless it has a trial already."""
        if architecture not in self.entered():
            self.study.enqueue_trial(params_of(architecture, self.space), user_attrs={"origin": origin})

    def unfinished(self) -> Trial | None:
        """The next trial to work on that exists already: one cut off in the middle, else one queued."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            return Trial(self.study, trial._trial_id)
        if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return self.study.ask()
        return None

    def ask(self, sampler: BaseSampler) -> Trial:
        """A new trial, its sizes chosen by the sampler once ``begin`` is called."""
        self.study.sampler = sampler
        return self.study.ask()

    def begin(self, trial: Trial, sampler: BaseSampler) -> Architecture:
        """Settle a trial's sizes; the same again for a trial that was cut off.

        Args:
            trial: from ``unfinished`` or ``ask``.
            sampler: for sizes that are not settled yet.
        """
        self.study.sampler = sampler
        params = {
            name: trial.suggest_int(name, one.low, one.high, step=one.step)
            for name, one in distributions(self.space).items()
        }
        architecture = architecture_of(params, self.space)
        trial.set_user_attr("label", architecture.label)
        for axis, size in architecture.sizes().items():
            if axis not in params:
                trial.set_user_attr(axis, size)
        trial.set_user_attr("parameters", self.space.parameters_of(architecture))
        if "origin" not in trial.user_attrs:
            trial.set_user_attr("origin", SEARCH)
        return architecture

    def tell(self, trial: Trial, evaluation: Evaluation) -> None:
        """Finish a trial with what was found."""
        trial.set_user_attr("feasible", True)
        trial.set_user_attr("values", dict(evaluation.values))
        trial.set_user_attr("tokens", evaluation.tokens)
        trial.set_user_attr("curve", evaluation.curve)
        trial.set_user_attr("seconds", evaluation.seconds)
        trial.set_user_attr("details", dict(evaluation.details))
        self.study.tell(trial, [evaluation.values[name] for name in self.objectives])

    def tell_failure(self, trial: Trial, reason: str) -> None:
        """Finish a trial that could not be evaluated, with its reason."""
        trial.set_user_attr("feasible", False)
        trial.set_user_attr("failure", reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def _record(self, trial: FrozenTrial) -> Record:
        attributes: dict[str, Any] = trial.user_attrs
        evaluation = None
        if trial.state is TrialState.COMPLETE:
            evaluation = Evaluation(
                attributes["values"],
                attributes["tokens"],
                [(tokens, loss) for tokens, loss in attributes["curve"]],
                attributes["seconds"],
                attributes["details"],
            )
        return Record(
            self.index,
            trial.number,
            architecture_of(trial.params, self.space),
            attributes.get("origin", SEARCH),
            evaluation,
            None if evaluation else attributes.get("failure", "ended without a reason"),
        )
