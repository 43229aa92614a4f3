"""What is known of a run before it has a summary: what the figures draw, in the form of a summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from evaluators.metrics.loss import perplexity
from search.rungs.evaluation import BY_HAND, SEARCH
from search.rungs.promotion import pareto_front
from search.runs.saved_run import SavedRun
from search.runs.saved_trials import SavedTrial, saved_trials
from search.settings.objectives import UNITS
from space.axes.architecture import Architecture
from space.counting.counting import parameter_polynomial

Entry = dict[str, Any]


def summary_so_far(run: SavedRun) -> Entry:
    """The summary of a finished run; of another one that part of it which says what was evaluated.

    That part has ``name``, ``teacher`` (whose ``loss`` is None until it is measured), ``objectives``,
    ``bounds``, ``rungs``, ``trials``, ``pareto``, ``promoted``, ``baselines``, and ``chosen``, which is None.

    Raises:
        InputError: a summary that cannot be read, or no trial was begun.
    """
    if run.finished:
        return run.summary
    config, found = run.config, saved_trials(run)
    retrained = [_retrained(run, fields, found) for fields in _results(run)]
    return {
        "name": config.name,
        "teacher": _teacher(run),
        "objectives": [{"name": name, "unit": UNITS[name]} for name in config.objectives],
        "bounds": [{"name": name, "unit": UNITS[name], "most": most} for name, most in config.most.items()],
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
        counted["parameters"] = parameter_polynomial(axis_map.given).of(sizes)
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
    """Labels of the front of the highest rung that has one."""
    within = [trial for trial in trials if trial.feasible]
    top = max((trial.rung for trial in within), default=0)
    last = [(one, one.evaluation) for one in within if one.rung == top and one.evaluation is not None]
    front = pareto_front([[found.values[name] for name in run.config.objectives] for _, found in last])
    return [last[place][0].label for place in front]


def _results(run: SavedRun) -> list[Entry]:
    """The retrainings that are over."""
    return [json.loads(path.read_text()) for path in sorted(run.directory.retraining.glob("*.json"))]


def _retrained(run: SavedRun, fields: Entry, trials: Sequence[SavedTrial]) -> Entry:
    """A retraining as the summary will have it, as far as studies and its own file say."""
    architecture = Architecture(**fields["architecture"])
    mine = [one for one in trials if one.architecture == architecture]
    losses = {one.rung: one.loss for one in mine if one.loss is not None}
    values = dict(next((one.evaluation.values for one in mine if one.evaluation), {}))
    pruned = fields["origin"] != "random-weights"
    values.pop("loss", None)
    top = max(losses, default=0)
    return {
        **{name: fields[name] for name in ("origin", "loss", "bits_per_byte", "tokens", "seconds")},
        **{name: fields[name] for name in ("curve", "path", "failure", "note")},
        "label": architecture.label,
        "architecture": _architecture(run, architecture),
        "parameters": next((one.parameters for one in mine), None),
        "perplexity": None if fields["loss"] is None else perplexity(fields["loss"]),
        "loss_after_pruning": losses.get(0) if pruned else None,
        "loss_after_short_distillation": losses[top] if pruned and top else None,
        "latency_ms": values.get("latency"),
        "objectives": values | ({} if fields["loss"] is None else {"loss": fields["loss"]}),
        "benchmarks": {},
    }
