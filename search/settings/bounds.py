"""Bounds on objectives: ``--max latency=20ms memory=8GB``; what is bounded is not made small as well.

What follows from the sizes bounds the space before the search. Latency is measured: a candidate over its
bound is recorded, and goes no further.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from search.settings.objectives import AMOUNTS
from space.input_error import InputError

Bounds = Mapping[str, float]
"""The most that is allowed of each objective that is bounded, in the objective's unit."""
LATENCY = "latency"
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+)\s*([a-z]*)", re.IGNORECASE)


def read_bounds(texts: Sequence[str]) -> dict[str, float]:
    """Read the values of ``--max``; a plain number is in the objective's unit.

    Raises:
        InputError: an objective cannot be bounded or is named twice, or its bound is no positive number with
            one of its units.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, amount = (part.strip().lower() for part in text.partition("="))
        if name not in AMOUNTS:
            raise _not_bounded(text, name)
        if name in found:
            raise InputError("An objective has one bound", f"two of {name} were given", "Leave one out")
        found[name] = _amount(name, amount, text)
    return found


def saved(bounds: Bounds) -> tuple[str, ...]:
    """As ``read_bounds`` reads them, the same however they were typed."""
    return tuple(f"{name}={bounds[name]!r}" for name in AMOUNTS if name in bounds)


def measured(bounds: Bounds) -> dict[str, float]:
    """The bounds on what is known only of candidates that were measured."""
    return {name: most for name, most in bounds.items() if name == LATENCY}


def over(values: Mapping[str, float], bounds: Bounds) -> dict[str, float]:
    """By how much values are over the bounds on them, in the objectives' units; of those that are."""
    return {
        name: values[name] - most for name, most in bounds.items() if name in values and values[name] > most
    }


def told(name: str, amount: float) -> str:
    """An amount of an objective as people say it: 21.4 ms, 8.05GB, 1.2B."""
    return AMOUNTS[name].say(amount)


def excess_in_words(excess: Mapping[str, float]) -> str:
    """Such as ``over the bound: latency by 3.1 ms``; empty within the bounds."""
    amounts = ", ".join(f"{name} by {told(name, amount)}" for name, amount in excess.items())
    return f"over the bound: {amounts}" if amounts else ""


def typed(name: str, amount: float) -> str:
    """A bound that this amount meets, as people type it, to three digits."""
    digits = 10.0 ** (math.floor(math.log10(amount)) - 2)
    most = told(name, math.ceil(round(amount / digits, 9)) * digits)
    return f"{name}={most.replace(' ', '').replace(',', '')}"


def in_words(bounds: Bounds) -> str:
    """Such as ``latency ≤ 20 ms, memory ≤ 8GB``."""
    return ", ".join(f"{name} ≤ {told(name, most)}" for name, most in bounds.items())


def _not_bounded(text: str, name: str) -> InputError:
    if name == "loss":
        return InputError(
            "The loss is made small and has no bound: what it comes to shows after retraining",
            f"--max {text} was given",
            "Leave it out",
        )
    near = get_close_matches(name, AMOUNTS, n=1)
    return InputError(
        f"What --max bounds is {', '.join(AMOUNTS)}",
        f"{text!r} names none of them",
        f"Did you mean {near[0]!r}" if near else "Write --max latency=20ms memory=8GB",
    )


def _amount(name: str, amount: str, text: str) -> float:
    units = AMOUNTS[name].units
    match = _NUMBER.fullmatch(amount)
    unit = match[2] if match else ""
    if match is None or unit not in ("", *units):
        raise _no_amount(name, text)
    value = float(match[1]) * units.get(unit, 1.0)
    if not 0 < value < math.inf:
        raise _no_amount(name, text)
    return value


def _no_amount(name: str, text: str) -> InputError:
    return InputError(
        f"A bound on {name} is a positive number (units {AMOUNTS[name].told})",
        f"--max {text} was given",
        f"Write {name}={AMOUNTS[name].example}",
    )
