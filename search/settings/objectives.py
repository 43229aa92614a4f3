"""The objectives that a search minimises or bounds: their units, and how amounts are typed and printed.

Bounds on objectives that follow from the sizes restrict the space before the search. Latency is measured: a
candidate over its bound is recorded, and not distilled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from evaluators.metrics.latency import Workload
from space.counting.budget import BYTE_UNITS, COUNT_UNITS, Measure, format_amount
from space.input_error import InputError


@dataclass(frozen=True)
class AmountFormat:
    """How an amount of an objective is typed and printed."""

    units: Mapping[str, float]
    """From a unit in lower case to the factor by which the number is multiplied."""
    unit_names: str
    """The units, for an error message."""
    example: str
    format: Callable[[float], str]


@dataclass(frozen=True)
class Objective:
    """One objective of the search."""

    unit: str
    describe: Callable[[Workload], str]
    """Returns what the objective measures under a workload, in words."""
    amounts: AmountFormat | None = None
    """How bounds are typed and printed; None if the objective cannot be bounded."""


def _milliseconds(amount: float) -> str:
    return f"{amount:.3g} ms" if amount < 1000 else f"{amount:,.0f} ms"


def _bytes(amount: float) -> str:
    return format_amount(amount, Measure.WEIGHTS)


def _context(load: Workload) -> int:
    return load.prompt + load.answer


TIME = AmountFormat({"ms": 1.0, "s": 1000.0}, "ms, s", "20ms or 0.5s", _milliseconds)
BYTES = AmountFormat(BYTE_UNITS, "kB, MB, GB, TB, KiB, MiB, GiB, TiB", "8GB or 500MiB", _bytes)
COUNT = AmountFormat(COUNT_UNITS, "k, M, B, T", "4B or 800M", format_amount)

#: All are minimised. All but loss and latency follow from the sizes (``search.settings.costs``).
OBJECTIVES = {
    "loss": Objective(
        "nats per token", lambda load: "cross-entropy of the next token on the validation blocks"
    ),
    "latency": Objective(
        "ms",
        lambda load: (
            f"{load.prompt} tokens read and {load.answer} made at batch {load.batch}, timed in turns with "
            f"the teacher, median of {load.repeats}"
        ),
        TIME,
    ),
    "parameters": Objective("parameters", lambda load: "tied ones once", COUNT),
    "memory": Objective(
        "bytes",
        lambda load: f"weights, and KV cache of {_context(load)} tokens at batch {load.batch}",
        BYTES,
    ),
    "flops": Objective("FLOPs per token", lambda load: f"of one token after {_context(load)} others", COUNT),
}
UNITS = {name: objective.unit for name, objective in OBJECTIVES.items()}
#: Amount formats of the objectives that can be bounded.
AMOUNTS = {name: one.amounts for name, one in OBJECTIVES.items() if one.amounts is not None}


_DEFAULT = ("loss", "latency")


def objectives_of(text: str | None, bounded: Collection[str], tasks: Collection[str] = ()) -> tuple[str, ...]:
    """Return the objectives to minimise; by default loss and latency, without those that are bounded.

    Args:
        text: the names, separated by commas; None by default.
        bounded: objectives that are bounded.
        tasks: further names that are objectives.

    Raises:
        InputError: a name is unknown or repeated, or loss is missing.
    """
    if text is None:
        return tuple(name for name in _DEFAULT if name not in bounded)
    return parse_objectives(text, tasks)


def parse_objectives(text: str, tasks: Collection[str] = ()) -> tuple[str, ...]:
    """Parse the names of objectives, separated by commas; ``tasks`` are names too.

    Raises:
        InputError: a name is unknown or repeated, or loss is missing.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in (*UNITS, *tasks):
            near = get_close_matches(name, UNITS, n=1)
            raise InputError(
                f"Objectives are {', '.join(UNITS)}",
                f"{name!r} is none of them",
                f"Did you mean {near[0]!r}" if near else "Choose from these",
            )
    if len(set(names)) != len(names) or "loss" not in names:
        raise InputError(
            "Objectives have to name loss, and each objective once",
            f"{text!r} does not",
            "Try --objectives loss,latency",
        )
    return names


Bounds = Mapping[str, float]
"""Upper bounds by objective, in the objective's unit."""
LATENCY = "latency"
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+)\s*([a-z]*)", re.IGNORECASE)


def read_bounds(texts: Sequence[str]) -> dict[str, float]:
    """Parse the values of ``--max``; a number without a unit is in the objective's unit.

    Raises:
        InputError: an objective cannot be bounded or is named twice, or a bound is not a positive number with
            one of the objective's units.
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


def read_task_bounds(texts: Sequence[str], flag: str, tasks: Collection[str]) -> dict[str, float]:
    """Parse the values of ``--min`` or ``--max``: bounds on scores of tasks.

    Args:
        texts: each a task, ``=`` and a number.
        flag: the flag, for messages.
        tasks: those that the run scored its models by.

    Raises:
        InputError: a task is unknown or named twice, or a bound is not a number.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, amount = (part.strip() for part in text.partition("="))
        if name not in tasks:
            near = get_close_matches(name, tasks, n=1)
            raise InputError(
                f"{flag} bounds scores on the tasks of the run: {', '.join(tasks) or 'it has none'}",
                f"{flag} {text} was given",
                f"Did you mean {near[0]!r}" if near else "Run the search with --benchmarks TASK",
            )
        if name in found:
            raise InputError("A task has one bound", f"two of {name} were given", "Leave one out")
        try:
            found[name] = float(amount)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise InputError(
                "A bound on a task is a number", f"{flag} {text} was given", f"Write {flag} {name}=0.7"
            )
    return found


def bounds_of_config(bounds: Bounds) -> tuple[str, ...]:
    """Format bounds for the configuration: ``read_bounds`` parses them, and units as typed do not matter."""
    return tuple(f"{name}={bounds[name]!r}" for name in AMOUNTS if name in bounds)


def measured_bounds(bounds: Bounds) -> dict[str, float]:
    """Return the bounds on objectives that are known only by measuring a candidate."""
    return {name: most for name, most in bounds.items() if name == LATENCY}


def excess_over(values: Mapping[str, float], bounds: Bounds) -> dict[str, float]:
    """Return by how much each value over its bound exceeds it, in the objective's unit."""
    return {
        name: values[name] - most for name, most in bounds.items() if name in values and values[name] > most
    }


def amount_in_words(name: str, amount: float) -> str:
    """Format an amount of an objective for people: 21.4 ms, 8.05GB, 1.2B; a score of a task as a number."""
    return AMOUNTS[name].format(amount) if name in AMOUNTS else f"{amount:.4g}"


def excess_in_words(excess: Mapping[str, float]) -> str:
    """Describe an excess, as in ``over the bound: latency by 3.1 ms``; empty if there is none."""
    amounts = ", ".join(f"{name} by {amount_in_words(name, amount)}" for name, amount in excess.items())
    return f"over the bound: {amounts}" if amounts else ""


def amount_as_typed(name: str, amount: float) -> str:
    """Return a bound that this amount meets, rounded up to three digits, as it is typed after ``--max``."""
    digits = 10.0 ** (math.floor(math.log10(amount)) - 2)
    most = amount_in_words(name, math.ceil(round(amount / digits, 9)) * digits)
    return f"{name}={most.replace(' ', '').replace(',', '')}"


def bounds_in_words(bounds: Bounds) -> str:
    """Describe bounds, as in ``latency ≤ 20 ms, memory ≤ 8GB``."""
    return ", ".join(f"{name} ≤ {amount_in_words(name, most)}" for name, most in bounds.items())


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
        f"A bound on {name} is a positive number (units {AMOUNTS[name].unit_names})",
        f"--max {text} was given",
        f"Write {name}={AMOUNTS[name].example}",
    )
