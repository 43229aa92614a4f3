"""Trials and models of a run as pandas frames, one call each, while it works as well as after it.

from search.frames import models, trials

trials("runs/demo-1M").query("rung == 1 and feasible").nsmallest(5, "loss")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from search.runs.live import STATES, SavedTrial, saved_trials, summary_so_far
from search.runs.saved_run import SavedRun, find_run
from search.settings.objectives import excess_in_words
from space.axes.architecture import Axis

#: Columns to their dtypes, all of which can say that a value is missing.
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("rung", "number", "parameters", "memory_bytes", "flops", "tokens"), "Int64"),
    **dict.fromkeys((axis.value for axis in Axis), "Int64"),
    **dict.fromkeys(("loss", "perplexity", "bits_per_byte", "latency_ms", "seconds"), "Float64"),
    **dict.fromkeys(("loss_after_pruning", "loss_after_short_distillation"), "Float64"),
    **dict.fromkeys(("label", "failure", "reason", "path", "note"), "string"),
    **dict.fromkeys(("feasible", "chosen"), "boolean"),
    "state": pd.CategoricalDtype(list(STATES)),
    "role": pd.CategoricalDtype(["teacher", "promoted", "baseline"]),
    "origin": "category",
    "kept_layers": "object",
}
#: Columns of trials, but those of the axes.
_TRIAL = (
    *("rung", "number", "state", "label", "origin", "kept_layers", "parameters", "loss", "latency_ms"),
    *("memory_bytes", "flops", "tokens", "seconds", "feasible", "reason"),
)


def trials(run: str | Path) -> pd.DataFrame:
    """Every evaluation that was begun, a row each, by rung and number.

    Columns:
        rung, number: of the trial in the study of its rung.
        state: complete, over (a bound, therefore not distilled), failed or running.
        label: the architecture's short name.
        origin: ``search``, ``by-hand``, or the name of a hand-made baseline.
        hidden, mlp, …, layers: sizes, for the axes that the teacher's class has.
        kept_layers: numbers of the teacher's layers that are kept; missing before the ranking is made.
        parameters: tied ones once.
        loss: nats per token at this rung.
        latency_ms: of the run's workload, milliseconds; missing if the run does not measure it.
        memory_bytes: of weights and KV cache.
        flops: of one token.
        tokens: of distillation at this rung.
        seconds: that distillation took.
        feasible: evaluated, and within the bounds; missing while it runs.
        reason: why it failed, or what bound it is over and by how much.

    Args:
        run: path of its directory, or its name below ``runs/``.

    Raises:
        InputError: there is no such run, or its storage is not there.
    """
    saved = find_run(run)
    return _frame([_trial(saved, trial) for trial in saved_trials(saved)], _TRIAL)


def models(run: str | Path) -> pd.DataFrame:
    """The teacher and every model that was retrained, a row each; so far, if the run is not finished.

    Columns:
        role: teacher, promoted or baseline.
        label: the architecture's short name; of the teacher its id.
        origin: as for ``trials``, or ``random-weights``; missing for the teacher.
        chosen: whether it is the model to take.
        hidden, mlp, …, layers, kept_layers, parameters, latency_ms, memory_bytes, flops: as for ``trials``.
        loss: nats per token of the model as written; missing if it failed.
        perplexity: per token.
        bits_per_byte: of validation text.
        loss_after_pruning, loss_after_short_distillation: nats per token.
        tokens, seconds: of retraining.
        path: of the model, as ``from_pretrained`` takes it; missing where none was kept.
        failure, note: why it failed; what went otherwise than planned and did no harm.

    Args:
        run: path of its directory, or its name below ``runs/``.

    Raises:
        InputError: there is no such run, or its summary cannot be read.
    """
    saved = find_run(run)
    summary = summary_so_far(saved)
    rows = [_model(saved, "teacher", summary["teacher"] | {"label": summary["teacher"]["id"]}, False)]
    promoted = {entry["label"] for entry in summary["promoted"]}
    chosen = summary["chosen"] and summary["chosen"]["label"]
    for role in ("promoted", "baseline"):
        for entry in summary["promoted" if role == "promoted" else "baselines"]:
            from_random = entry["origin"] == "random-weights"
            if role == "promoted" or from_random or entry["label"] not in promoted:
                rows.append(_model(saved, role, entry, entry["label"] == chosen and not from_random))
    return _frame(rows, ())


def _trial(run: SavedRun, trial: SavedTrial) -> dict[str, Any]:
    found = trial.evaluation
    return {
        "rung": trial.rung,
        "number": trial.number,
        "state": trial.state,
        "label": trial.label,
        "origin": trial.origin,
        **trial.architecture.sizes(),
        "kept_layers": run.kept_layers(trial.architecture),
        "parameters": trial.parameters,
        "loss": trial.loss,
        **_costs(dict(found.values) if found else {}),
        "tokens": found.tokens if found else None,
        "seconds": found.seconds if found else None,
        "feasible": trial.feasible,
        "reason": trial.failure or excess_in_words(trial.over) or None,
    }


def _costs(values: dict[str, float]) -> dict[str, Any]:
    return {
        "latency_ms": values.get("latency"),
        "memory_bytes": values.get("memory"),
        "flops": values.get("flops"),
    }


def _model(run: SavedRun, role: str, entry: dict[str, Any], chosen: bool) -> dict[str, Any]:
    sizes = dict(entry["architecture"])
    kept = sizes.pop("kept_layers")
    path = entry.get("path")
    told = ("parameters", "loss", "perplexity", "bits_per_byte")
    before = ("loss_after_pruning", "loss_after_short_distillation")
    return {
        "role": role,
        "label": entry["label"],
        "origin": entry.get("origin"),
        "chosen": chosen,
        **sizes,
        "kept_layers": kept,
        **{name: entry[name] for name in told},
        **{name: entry.get(name) for name in before},
        **_costs(entry.get("objectives", {})),
        **{name: entry.get(name) for name in ("tokens", "seconds")},
        "path": str(run.path / path) if path else None,
        **{name: entry.get(name) for name in ("failure", "note")},
    }


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows of the same columns, whole numbers as such; of no rows the columns that there always are."""
    frame = pd.DataFrame(rows, columns=list(rows[0] if rows else columns))
    return frame.astype({name: kind for name, kind in _KINDS.items() if name in frame})
