"""The user's criteria for choosing a model: bounds on its figures, or weights of the objectives.

Weights combine the objectives into one score, Σ wᵢ · (valueᵢ / the teacher's valueᵢ); lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from search.settings.objectives import UNITS, Bounds, read_bounds
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

    def within(self, entry: Entry) -> bool:
        """Return whether a model is known to lie within the bounds."""
        return not self.excess(entry)

    def excess(self, entry: Entry) -> dict[str, float]:
        """Return the excess over each bound, in the objective's unit; infinite if not measured."""
        found = {}
        for name, most in self.bounds.items():
            value = figure_of(entry, name)
            if value is None or value > most:
                found[name] = math.inf if value is None else value - most
        return found

    def terms(self, entry: Entry, teacher: Entry) -> dict[str, float] | None:
        """Return each weighted objective as a share of the teacher's; None if one was not measured."""
        shares = {}
        for name in (name for name, weight in self.weights.items() if weight):
            value, reference = figure_of(entry, name), figure_of(teacher, name)
            if value is None or not reference:
                return None
            shares[name] = value / reference
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
    if value is None:
        value = entry.get("objectives", {}).get(name)
    return None if value is None else float(value)


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


def read_weights(texts: Sequence[str]) -> dict[str, float]:
    """Parse the values of ``--weights``.

    Raises:
        InputError: an objective is unknown or repeated, a weight is negative or not a number, or all are 0.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, _, amount = (part.strip().lower() for part in text.partition("="))
        if name not in UNITS:
            near = get_close_matches(name, UNITS, n=1)
            rule = f"Objectives are {', '.join(UNITS)}"
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
