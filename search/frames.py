"""Trials and models of a run as pandas data frames, during the run as well as after it.

Example:
    from search.frames import trials

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

#: Dtypes of the columns, all of which can hold missing values.
_DTYPES: dict[str, Any] = {
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
#: Columns of ``trials`` without those of the axes.
_TRIAL_COLUMNS = (
    *("rung", "number", "state", "label", "origin", "kept_layers", "parameters", "loss", "latency_ms"),
    *("memory_bytes", "flops", "tokens", "seconds", "feasible", "reason"),
)


def trials(run: str | Path) -> pd.DataFrame:
    """Return all trials that were started, one per row, ordered by rung and number.

    Columns:
        rung, number: the rung, and the number of the trial in the study of the rung.
        state: complete, over (over a bound, and therefore not distilled), failed or running.
        label: the architecture's short name.
        origin: ``search``, ``by-hand``, or the name of a hand-made baseline.
        hidden, mlp, …, layers: sizes, for the axes that the teacher's class has.
        kept_layers: indices of the teacher's layers that are kept; missing before the ranking is made.
        parameters: number of parameters, tied ones counted once.
        loss: validation loss at this rung, in nats per token.
        latency_ms: latency of the run's workload in milliseconds; missing if the run does not measure it.
        memory_bytes: bytes of weights and KV cache.
        flops: FLOPs per token.
        tokens: tokens of distillation at this rung.
        seconds: duration of the distillation.
        feasible: whether the trial was evaluated and lies within the bounds; missing while it runs.
        reason: why the trial failed, or which bound it is over and by how much.

    Args:
        run: directory of the run, or its name below ``runs/``.

    Raises:
        InputError: there is no such run, or its storage does not exist.
    """
    saved = find_run(run)
    return _frame([_trial(saved, trial) for trial in saved_trials(saved)], _TRIAL_COLUMNS)


def models(run: str | Path) -> pd.DataFrame:
    """Return the teacher and all models retrained so far, one per row.

    Columns:
        role: teacher, promoted or baseline.
        label: the architecture's short name, or the id of the teacher.
        origin: as for ``trials``, or ``random-weights``; missing for the teacher.
        chosen: whether this is the model to use.
        hidden, mlp, …, layers, kept_layers, parameters, latency_ms, memory_bytes, flops: as for ``trials``.
        loss: validation loss of the saved model in nats per token; missing if retraining failed.
        perplexity: perplexity per token.
        bits_per_byte: validation loss in bits per byte of text.
        loss_after_pruning, loss_after_short_distillation: validation losses in nats per token.
        tokens, seconds: tokens and duration of retraining.
        path: directory of the model for ``from_pretrained``; missing if none was kept.
        failure, note: why retraining failed; any harmless deviation from the plan.

    Args:
        run: directory of the run, or its name below ``runs/``.

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
    required = ("parameters", "loss", "perplexity", "bits_per_byte")
    earlier = ("loss_after_pruning", "loss_after_short_distillation")
    return {
        "role": role,
        "label": entry["label"],
        "origin": entry.get("origin"),
        "chosen": chosen,
        **sizes,
        "kept_layers": kept,
        **{name: entry[name] for name in required},
        **{name: entry.get(name) for name in earlier},
        **_costs(entry.get("objectives", {})),
        **{name: entry.get(name) for name in ("tokens", "seconds")},
        "path": str(run.path / path) if path else None,
        **{name: entry.get(name) for name in ("failure", "note")},
    }


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a frame with the dtypes of ``_DTYPES``; without rows, an empty frame of ``columns``."""
    frame = pd.DataFrame(rows, columns=list(rows[0] if rows else columns))
    return frame.astype({name: dtype for name, dtype in _DTYPES.items() if name in frame})
