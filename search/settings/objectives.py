"""What a search makes small: the objectives in one table, with their units and how people type them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from evaluators.metrics.latency import Workload
from space.counting.budget import BYTE_UNITS, COUNT_UNITS, Measure, spoken
from space.input_error import InputError


@dataclass(frozen=True)
class Amounts:
    """How people type an amount of an objective, and say it."""

    units: Mapping[str, float]
    """What a number is multiplied by, by its unit in lower case."""
    told: str
    """The units, for a message."""
    example: str
    say: Callable[[float], str]


@dataclass(frozen=True)
class Objective:
    """One of what a search can make small."""

    unit: str
    described: Callable[[Workload], str]
    """What it is, of the work that is timed, cached and counted."""
    amounts: Amounts | None = None
    """None: it cannot be bounded."""


def _milliseconds(amount: float) -> str:
    return f"{amount:.3g} ms" if amount < 1000 else f"{amount:,.0f} ms"


def _bytes(amount: float) -> str:
    return spoken(amount, Measure.WEIGHTS)


def _context(load: Workload) -> int:
    return load.prompt + load.answer


TIME = Amounts({"ms": 1.0, "s": 1000.0}, "ms, s", "20ms or 0.5s", _milliseconds)
BYTES = Amounts(BYTE_UNITS, "kB, MB, GB, TB, KiB, MiB, GiB, TiB", "8GB or 500MiB", _bytes)
COUNT = Amounts(COUNT_UNITS, "k, M, B, T", "4B or 800M", spoken)

#: All are minimised. Those besides loss and latency follow from the sizes (``search.settings.costs``).
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
#: Of those that can be bounded.
AMOUNTS = {name: one.amounts for name, one in OBJECTIVES.items() if one.amounts is not None}


_DEFAULT = ("loss", "latency")


def objectives_of(text: str | None, bounded: Collection[str]) -> tuple[str, ...]:
    """What the user asked to make small; by default loss and latency, without what is bounded.

    Raises:
        InputError: a name is unknown or repeated, or loss is missing.
    """
    if text is None:
        return tuple(name for name in _DEFAULT if name not in bounded)
    return parse_objectives(text)


def parse_objectives(text: str) -> tuple[str, ...]:
    """Read names separated by commas.

    Raises:
        InputError: a name is unknown or repeated, or loss is missing.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in UNITS:
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
