"""Read an unfinished run from its Optuna studies: the trials, and the part of the summary known so far.

The dashboard and ``search.frames`` show a run with these before it has a ``summary.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from evaluators.metrics.loss import perplexity
from search.rungs.bracket import pareto_front
from search.rungs.evaluation import BY_HAND, SEARCH, Evaluation
from search.rungs.rung import evaluation_of, without_duplicates
from search.rungs.sampler import known_params
from search.runs.saved_run import SavedRun
from search.settings.task_objectives import unit_of
from space.axes.architecture import Architecture, Axis
from space.counting.counting import parameter_polynomial

Entry = dict[str, Any]
#: States of a trial: the three that a summary has, and ``running``.
STATES = ("complete", "over", "failed", "running")


@dataclass(frozen=True)
class SavedTrial:
    """One evaluation of an architecture at a rung, finished or not."""

    rung: int
    number: int
    storage_id: int
    """The id of the trial in Optuna's storage and dashboard."""
    state: str
    """One of ``STATES``; ``over`` means that it exceeds a bound and was therefore not distilled."""
    architecture: Architecture
    origin: str
    parameters: int
    evaluation: Evaluation | None
    """None unless the state is ``complete`` or ``over``."""
    over: dict[str, float]
    """By how much it exceeds each bound, in the objective's unit."""
    failure: str | None

    @property
    def label(self) -> str:
        """The architecture's short name."""
        return self.architecture.label

    @property
    def feasible(self) -> bool | None:
        """Whether it was evaluated and lies within the bounds; None while it runs."""
        if self.state == "running":
            return None
        return self.evaluation is not None and not self.over

    @property
    def loss(self) -> float | None:
        """Loss at its rung in nats per token; None unless the state is ``complete``."""
        return self.evaluation.values["loss"] if self.evaluation and self.state == "complete" else None


def saved_trials(run: SavedRun) -> list[SavedTrial]:
    """Return every trial that was started, by rung and number, without duplicates of an architecture.

    Raises:
        InputError: the run's storage is missing.
    """
    return [trial for rung, study in enumerate(run.studies) for trial in _trials_of_rung(rung, study)]


def _trials_of_rung(rung: int, study: optuna.Study) -> list[SavedTrial]:
    known = [(trial, _architecture_of(trial)) for trial in study.get_trials(deepcopy=False)]
    return [_read(rung, trial, found) for trial, found in without_duplicates(known) if found is not None]


def _architecture_of(trial: FrozenTrial) -> Architecture | None:
    """Join a trial's parameters (free axes) and attributes (others); None until ``parameters`` is written."""
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


def summary_so_far(run: SavedRun) -> Entry:
    """Return the summary of a finished run, or for an unfinished one the part that is known.

    That part has ``name``, ``teacher`` (its ``loss`` is None until measured), ``objectives``, ``bounds``,
    ``rungs``, ``trials``, ``pareto``, ``promoted``, ``baselines``, and ``chosen``, which is None.

    Raises:
        InputError: the summary cannot be read, or no trial was started.
    """
    if run.finished:
        return run.summary
    config, found = run.config, saved_trials(run)
    retrained = [_retrained(run, fields, found) for fields in _results(run)]
    return {
        "name": config.name,
        "teacher": _teacher(run),
        "objectives": [{"name": name, "unit": unit_of(name)} for name in config.objectives],
        "bounds": [
            {"name": name, "unit": unit_of(name), "most": most} for name, most in config.upper_bounds.items()
        ],
        "least": [],  # scores are those of retrained models
        "rungs": [{"rung": i, "tokens": tokens} for i, tokens in enumerate((0, *config.rung_tokens))],
        "trials": [_trial(run, trial) for trial in found if trial.state != "running"],
        "pareto": _pareto(run, found),
        "promoted": [one for one in retrained if one["origin"] in (SEARCH, BY_HAND)],
        "baselines": [one for one in retrained if one["origin"] not in (SEARCH, BY_HAND)],
        "chosen": None,
    }


def _teacher(run: SavedRun) -> Entry:
    path, axis_map = run.directory.teacher, run.axis_map
    measured = json.loads(path.read_text()) if path.exists() else {"loss": None, "latency_ms": None}
    counted: Entry = {"architecture": {"layers": 0, "kept_layers": []}, "parameters": None}
    if axis_map is not None:
        sizes = axis_map.teacher
        counted["architecture"] = {**sizes.sizes(), "kept_layers": list(range(sizes.layers))}
        counted["parameters"] = parameter_polynomial(axis_map).of(sizes)
    objectives = {"loss": measured["loss"], "latency": measured["latency_ms"]}
    return {
        "id": run.config.teacher,
        "revision": run.config.revision or None,
        **counted,
        **measured,
        "perplexity": None if measured["loss"] is None else perplexity(measured["loss"]),
        "bits_per_byte": None,
        "memory_bytes": None,
        "objectives": {name: value for name, value in objectives.items() if value is not None},
    }


def _architecture(run: SavedRun, architecture: Architecture) -> Entry:
    return {**architecture.sizes(), "kept_layers": run.kept_layers(architecture) or []}


def _trial(run: SavedRun, trial: SavedTrial) -> Entry:
    values = dict(trial.evaluation.values) if trial.evaluation else {}
    if trial.loss is None:
        values.pop("loss", None)
    return {
        "rung": trial.rung,
        "number": trial.number,
        "state": trial.state,
        "label": trial.label,
        "origin": trial.origin,
        "architecture": _architecture(run, trial.architecture),
        "parameters": trial.parameters,
        "loss": trial.loss,
        "latency_ms": values.get("latency"),
        "objectives": values,
        "tokens": trial.evaluation.tokens if trial.evaluation else 0,
        "over": trial.over,
        "failure": trial.failure,
    }


def _pareto(run: SavedRun, trials: Sequence[SavedTrial]) -> list[str]:
    """Return the labels on the Pareto front of the highest rung with a feasible trial."""
    within = [trial for trial in trials if trial.feasible]
    top = max((trial.rung for trial in within), default=0)
    last = [(one, one.evaluation) for one in within if one.rung == top and one.evaluation is not None]
    front = pareto_front([[found.values[name] for name in run.config.objectives] for _, found in last])
    return [last[place][0].label for place in front]


def _results(run: SavedRun) -> list[Entry]:
    """Read the results of the retrainings that have ended."""
    return [json.loads(path.read_text()) for path in sorted(run.directory.retraining.glob("*.json"))]


def _retrained(run: SavedRun, fields: Entry, trials: Sequence[SavedTrial]) -> Entry:
    """Return a retrained model's entry in the summary, as far as the studies and its result file tell."""
    architecture = Architecture(**fields["architecture"])
    own_trials = [one for one in trials if one.architecture == architecture]
    losses = {one.rung: one.loss for one in own_trials if one.loss is not None}
    values = dict(next((one.evaluation.values for one in own_trials if one.evaluation), {}))
    pruned = fields["origin"] != "random-weights"
    values.pop("loss", None)
    top = max(losses, default=0)
    return {
        **{name: fields[name] for name in ("origin", "loss", "bits_per_byte", "tokens", "seconds")},
        **{name: fields[name] for name in ("curve", "path", "failure", "note")},
        "short": fields.get("short", False),
        "label": architecture.label,
        "architecture": _architecture(run, architecture),
        "parameters": next((one.parameters for one in own_trials), None),
        "perplexity": None if fields["loss"] is None else perplexity(fields["loss"]),
        "loss_after_pruning": losses.get(0) if pruned else None,
        "loss_after_short_distillation": losses[top] if pruned and top else None,
        "latency_ms": values.get("latency"),
        "objectives": values | ({} if fields["loss"] is None else {"loss": fields["loss"]}),
        "benchmarks": {},
    }
