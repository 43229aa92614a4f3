"""The summary of a run: one JSON file with every figure, and helpers that read figures from it.

Its schema is ``search/summary.schema.json``. A summary is checked before it is written and after it is
read, so a missing figure is noticed where it went missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from search.settings.objectives import amount_in_words, bounds_in_words, excess_in_words
from search.storage.run_directory import atomic_write
from search.terminal.format import quantity
from space.input_error import InputError


@cache
def _validator() -> Any:
    return Draft202012Validator(load_schema())


def load_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a summary."""
    schema: dict[str, Any] = json.loads(files("search").joinpath("summary.schema.json").read_bytes())
    return schema


def check(summary: dict[str, Any]) -> None:
    """Check a summary against the schema.

    Raises:
        InputError: the summary does not follow the schema; names the place and the most relevant error.
    """
    place = next(_not_finite(summary, "summary"), None)
    if place is not None:
        raise _refusal(f"{place} is not a finite number")
    error: ValidationError | None = best_match(_validator().iter_errors(summary))
    if error is not None:
        raise _refusal(f"{_place(error)}: {error.message[:500]}")


def read(path: Path) -> dict[str, Any]:
    """Read and check the summary at ``path``.

    Raises:
        InputError: the file is missing, is not JSON, or does not follow the schema.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(f"{path} cannot be read ({error})") from error
    if not isinstance(summary, dict):
        raise _refusal(f"{path} holds a {type(summary).__name__}")
    check(summary)
    return summary


def write(path: Path, summary: dict[str, Any]) -> None:
    """Check ``summary`` and write it to ``path`` atomically.

    Raises:
        InputError: the summary does not follow the schema; nothing is written.
    """
    check(summary)
    atomic_write(path, json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _not_finite(value: Any, place: str) -> Iterator[str]:
    """Yield the places of NaN and infinity, which JSON cannot represent."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{place}[{index}]")


def _place(error: ValidationError) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    return "summary" + "".join(steps)


def _refusal(found: str) -> InputError:
    return InputError(
        "A summary follows search/summary.schema.json",
        found,
        "Write it with the same version of Slimsearch that reads it, or run the search again",
    )


def bounds_of(summary: dict[str, Any]) -> dict[str, float]:
    """Return the run's upper bounds by objective, in the objective's unit."""
    return {bound["name"]: bound["most"] for bound in summary["bounds"]}


def least_of(summary: dict[str, Any]) -> dict[str, float]:
    """Return the run's lower bounds by task."""
    return {bound["name"]: bound["least"] for bound in summary["least"]}


def over_labels(summary: dict[str, Any]) -> set[str]:
    """Return the labels of the architectures that exceed a bound."""
    return {trial["label"] for trial in summary["trials"] if trial.get("over")}


def over_in_words(trial: dict[str, Any]) -> str:
    """Return text such as ``over the bound: latency by 3.1 ms``; empty if the trial is within the bounds."""
    return excess_in_words(trial.get("over") or {})


def unmet(summary: dict[str, Any]) -> str:
    """Say that no candidate lies within the bounds and name the nearest; empty if one does."""
    if low := _too_low(summary):
        return low
    bounds = bounds_of(summary)
    seen = [trial for trial in summary["trials"] if trial["state"] != "failed"]
    if not seen or not all(trial.get("over") for trial in seen):
        return ""
    nearest = min(seen, key=lambda trial: max(trial["over"][name] / bounds[name] for name in trial["over"]))
    reached = " and ".join(
        f"{amount_in_words(name, bounds[name] + amount)} of {name}"
        for name, amount in nearest["over"].items()
    )
    return (
        f"No candidate lies within {bounds_in_words(bounds)}; the nearest, {nearest['label']}, has {reached}"
    )


def _too_low(summary: dict[str, Any]) -> str:
    """Say that no retrained model reaches the least scores, and name the best; empty where there are none."""
    least = least_of(summary)
    scored = [one for one in (*summary["promoted"], *summary["baselines"]) if one["benchmarks"]]
    if not least or not scored:
        return ""
    wanted = ", ".join(f"{name} ≥ {score:g}" for name, score in least.items())
    best = {
        name: max(((one["benchmarks"].get(name) or {}).get("value") or 0.0, one["label"]) for one in scored)
        for name in least
    }
    reached = ", ".join(f"{value:.4g} on {name} ({label})" for name, (value, label) in best.items())
    return f"No retrained model has {wanted}; the best have {reached}"


_FIELDS = {
    "latency": "latency_ms",
    "latency_ms": "latency_ms",
    "parameters": "parameters",
    "memory": "memory_bytes",
}
_LOSS = "loss"


@dataclass(frozen=True)
class CostAxis:
    """The objective that is drawn against the loss in the Pareto front.

    Attributes:
        name: the objective's name.
        unit: its unit; may be empty.
    """

    name: str
    unit: str

    @property
    def title(self) -> str:
        """The axis title: name and unit."""
        return f"{self.name}, {self.unit}" if self.unit not in ("", self.name) else self.name

    def in_words(self, value: float) -> str:
        """Return a value with its unit, for use in a sentence."""
        return quantity(value, self.unit) if self.unit != self.name else quantity(value)

    def of(self, evaluation: dict[str, Any]) -> float | None:
        """Return the value in an entry of the summary (trial, student or teacher); None if not measured."""
        value = evaluation.get(_FIELDS.get(self.name, ""))
        if value is None:
            value = evaluation.get("objectives", {}).get(self.name)
        return None if value is None else float(value)


def cost_axis(summary: dict[str, Any]) -> CostAxis:
    """Return the first measured of latency, the other objectives and the bounds; else parameters."""
    shown = [*summary["objectives"], *summary["bounds"]]
    axes = [CostAxis(entry["name"], entry["unit"]) for entry in shown if entry["name"] != _LOSS]
    axes.sort(key=lambda axis: _FIELDS.get(axis.name) != "latency_ms")
    measured = [*summary["trials"], *summary["promoted"], *summary["baselines"]]
    for axis in axes:
        if any(axis.of(evaluation) is not None for evaluation in measured):
            return axis
    return CostAxis("parameters", "")


#: A loss is an outlier if its gap to the teacher is more than this many times the median gap.
_FAR = 4.0


def farthest_near(losses: Iterable[float], teacher: float) -> float:
    """Return the highest loss whose gap to the teacher's is at most 4 times the median gap.

    All in nats per token. Without any losses, return the teacher's.
    """
    known = sorted(losses)
    if not known:
        return teacher
    limit = max(teacher + _FAR * max(0.0, median(known) - teacher), known[0])
    return max(loss for loss in known if loss <= limit)
