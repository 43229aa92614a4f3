"""The user's criteria for choosing a model: bounds on its figures, or weights of the objectives.

Weights combine the objectives into one score, Σ wᵢ · (valueᵢ / the teacher's valueᵢ); lower is better. Scores
on tasks are those on all examples, by name of the task; where higher is better, the ratio is turned round.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from search.settings.objectives import UNITS, Bounds, bounds_in_words, read_bounds
from space.input_error import InputError

Entry = Mapping[str, Any]
_FORM = "Write --weights loss=1 latency=0.5"


@dataclass(frozen=True)
class Criteria:
    """Bounds and weights; with neither, the run's own rule applies: the lowest loss."""

    bounds: Bounds = field(default_factory=dict)
    """Upper bounds by objective, in the objective's unit."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weights by objective, none negative and at least one positive; if empty, only the loss counts."""
    least: Bounds = field(default_factory=dict)
    """Lower bounds by task."""

    def within(self, entry: Entry) -> bool:
        """Return whether a model is known to lie within the bounds."""
        return not self.excess(entry)

    def excess(self, entry: Entry) -> dict[str, float]:
        """Return the excess over each bound, in the objective's unit; infinite if not measured."""
        found = {}
        for name, bound in (*self.bounds.items(), *self.least.items()):
            value, sign = figure_of(entry, name), -1 if name in self.least else 1
            if value is None or sign * value > sign * bound:
                found[name] = math.inf if value is None else abs(value - bound)
        return found

    @property
    def words(self) -> str:
        """The bounds, as in ``latency ≤ 20 ms, blimp ≥ 0.7``; empty if there are none."""
        least = [f"{name} ≥ {bound:g}" for name, bound in self.least.items()]
        return ", ".join(filter(None, [bounds_in_words(self.bounds), *least]))

    def terms(self, entry: Entry, teacher: Entry) -> dict[str, float] | None:
        """Return each weighted objective as a share of the teacher's; None if one was not measured."""
        shares = {}
        for name in (name for name, weight in self.weights.items() if weight):
            value, reference = figure_of(entry, name), figure_of(teacher, name)
            if value is None or not reference:
                return None
            if not higher_is_better(entry, name):
                shares[name] = value / reference
            elif value:
                shares[name] = reference / value
            else:
                return None
        return shares

    def score(self, entry: Entry, teacher: Entry) -> float | None:
        """Return the weighted sum (lower is better); None if a weighted objective was not measured."""
        shares = self.terms(entry, teacher)
        return None if shares is None else sum(self.weights[name] * share for name, share in shares.items())


def figure_of(entry: Entry, name: str) -> float | None:
    """Return an objective's value from an entry of a summary, in its unit; None if not measured."""
    value = {
        "loss": entry["loss"],
        "latency": entry["latency_ms"],
        "parameters": entry["parameters"],
        "memory": entry.get("memory_bytes"),
    }.get(name)
    if value is None and name in (tasks := entry.get("benchmarks", {})):
        value = tasks[name]["value"]
    if value is None and name in UNITS:
        value = entry.get("objectives", {}).get(name)
    return None if value is None else float(value)


def higher_is_better(entry: Entry, name: str) -> bool:
    """Return whether a figure of an entry is a score on a task of which more is better."""
    return bool(entry.get("benchmarks", {}).get(name, {}).get("higher_is_better"))


def read_bound(name: str, amount: str) -> float:
    """Parse the value of ``--max-NAME`` into the objective's unit.

    Raises:
        InputError: it is not a positive number with one of the objective's units.
    """
    try:
        return read_bounds([f"{name}={amount}"])[name]
    except InputError as error:
        remedy = error.remedy.replace(f"{name}=", f"--max-{name} ")
        raise InputError(error.rule, f"--max-{name} {amount} was given", remedy) from None


def read_weights(texts: Sequence[str], tasks: Collection[str] = ()) -> dict[str, float]:
    """Parse the values of ``--weights``; ``tasks`` are those that the run scored its models by.

    Raises:
        InputError: an objective is unknown or repeated, a weight is negative or not a number, or all are 0.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, _, amount = (part.strip() for part in text.partition("="))
        name = name if name in tasks else name.lower()
        if name not in (*UNITS, *tasks):
            near = get_close_matches(name, [*UNITS, *tasks], n=1)
            rule = f"Objectives are {', '.join([*UNITS, *tasks])}"
            raise InputError(
                rule,
                f"--weights names {name!r}",
                f"Did you mean {near[0]!r}" if near else "Choose from these",
            )
        if name in weights:
            raise InputError("An objective has one weight", f"two of {name} were given", "Leave one out")
        weights[name] = _weight(text, amount)
    if texts and not any(weights.values()):
        raise InputError("One weight at least is above nought", f"all of {' '.join(texts)} are 0", _FORM)
    return weights


def _weight(text: str, amount: str) -> float:
    try:
        weight = float(amount)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise InputError("A weight is a number that is not negative", f"--weights {text} was given", _FORM)
    return weight
