"""The trials of a run as its studies hold them, read without the space they were drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.rungs.evaluation import SEARCH, Evaluation
from search.rungs.rung import evaluation_of, without_twins
from search.rungs.sampler import known_params
from search.runs.saved_run import SavedRun
from space.axes.architecture import Architecture, Axis

#: Of a trial, as a summary has it, and before it is finished.
STATES = ("complete", "over", "failed", "running")


@dataclass(frozen=True)
class SavedTrial:
    """One evaluation, finished or not."""

    rung: int
    number: int
    storage_id: int
    """Of the trial, by which Optuna's storage and dashboard know it."""
    state: str
    """One of ``STATES``; ``over``: over a bound, and therefore not distilled."""
    architecture: Architecture
    origin: str
    parameters: int
    evaluation: Evaluation | None
    """None unless it is complete or over a bound."""
    over: dict[str, float]
    """By how much it is over each bound, in the objective's unit."""
    failure: str | None

    @property
    def label(self) -> str:
        """The architecture's short name."""
        return self.architecture.label

    @property
    def feasible(self) -> bool | None:
        """Whether it was evaluated and lies within the bounds; None before."""
        if self.state == "running":
            return None
        return self.evaluation is not None and not self.over

    @property
    def loss(self) -> float | None:
        """Of its rung, nats per token; what is over a bound has none but straight after pruning."""
        return self.evaluation.values["loss"] if self.evaluation and self.state == "complete" else None


def saved_trials(run: SavedRun) -> list[SavedTrial]:
    """Every trial that was begun, by rung and number; of one architecture at a rung the one that counts.

    Raises:
        InputError: the storage of the run is not there.
    """
    return [trial for rung, study in enumerate(run.studies) for trial in _of_rung(rung, study)]


def _of_rung(rung: int, study: optuna.Study) -> list[SavedTrial]:
    known = [(trial, _architecture(trial)) for trial in study.get_trials(deepcopy=False)]
    return [_read(rung, trial, found) for trial, found in without_twins(known) if found is not None]


def _architecture(trial: FrozenTrial) -> Architecture | None:
    """Parameters of the free axes, and attributes of the others; the count is the last of them."""
    if "parameters" not in trial.user_attrs:
        return None
    sizes = trial.user_attrs | known_params(trial)
    return Architecture(**{axis.value: int(sizes.get(axis.value, 0)) for axis in Axis})


def _read(rung: int, trial: FrozenTrial, architecture: Architecture) -> SavedTrial:
    attributes: dict[str, Any] = trial.user_attrs
    evaluation, over = evaluation_of(trial), dict(attributes.get("over", {}))
    if not trial.state.is_finished():
        state = "running"
    elif evaluation is None:
        state = "failed"
    else:
        state = "over" if over and rung else "complete"
    return SavedTrial(
        rung,
        trial.number,
        trial._trial_id,
        state,
        architecture,
        attributes.get("origin", SEARCH),
        int(attributes["parameters"]),
        evaluation,
        over,
        attributes.get("failure", "ended without a reason") if state == "failed" else None,
    )
