"""The budget of a student: parsing what the user types, what it measures, and its tolerance."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from space.input_error import InputError


class Measure(StrEnum):
    """The quantity that a budget limits."""

    TOTAL = "total"
    NON_EMBEDDING = "non-embedding"
    ACTIVE = "active"
    WEIGHTS = "weights"
    KV_CACHE = "kv-cache"

    @property
    def in_bytes(self) -> bool:
        """Whether the quantity is memory in bytes rather than a number of parameters."""
        return self in (Measure.WEIGHTS, Measure.KV_CACHE)

    @property
    def unit(self) -> str:
        """The unit in words, to follow a number."""
        return _WORDS[self]


_WORDS = {
    Measure.TOTAL: "parameters",
    Measure.NON_EMBEDDING: "non-embedding parameters",
    Measure.ACTIVE: "active parameters",
    Measure.WEIGHTS: "bytes of weights",
    Measure.KV_CACHE: "bytes of KV cache a token",
}
#: From a unit in lower case to its factor.
COUNT_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
BYTE_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BYTE_UNITS |= {f"{prefix}ib": 2**power for prefix, power in (("k", 10), ("m", 20), ("g", 30), ("t", 40))}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z%]*)", re.IGNORECASE)


@dataclass(frozen=True)
class BudgetText:
    """A budget as the user types it: a number of parameters or bytes, or a share of the teacher's."""

    amount: float
    """Parameters or bytes, or the share (0.6 for 60%)."""
    relative: bool

    @classmethod
    def parse(cls, text: str, of: Measure = Measure.TOTAL) -> BudgetText:
        """Parse ``4B``, ``350M``, ``800k``, ``1200000`` or ``60%``; for memory ``8GB``, ``500MB``, ``64KiB``.

        Args:
            text: as the user typed it.
            of: what the budget measures.

        Raises:
            InputError: the text is not a positive number in one of the measure's units.
        """
        units, others = (BYTE_UNITS, COUNT_UNITS) if of.in_bytes else (COUNT_UNITS, BYTE_UNITS)
        rule, remedy = _rule(of)
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise InputError(rule, f"{text!r} is neither", remedy)
        number, unit = float(match[1]), match[2].lower()
        if unit in others:
            raise InputError(rule, f"{text!r} is in {_other(of)}", _instead(of, remedy))
        if unit not in ("", "%", *units):
            raise InputError(rule, f"{text!r} has the unknown unit {match[2]!r}", remedy)
        amount = number / 100 if unit == "%" else number * units.get(unit, 1)
        if not 0 < amount < math.inf:
            raise InputError(rule, f"{text!r} is {'too large' if amount else 'not positive'}", remedy)
        return cls(amount, unit == "%")

    def of(self, whole: int) -> int:
        """Return the amount for a teacher that measures ``whole``."""
        return round(self.amount * whole) if self.relative else round(self.amount)


def _rule(of: Measure) -> tuple[str, str]:
    if of.in_bytes:
        return (
            f"A budget of {of} is a positive number of bytes (units kB, MB, GB, TB, KiB, MiB, GiB, TiB) "
            "or a percentage",
            "Write it like 8GB, 500MB, 16GiB, 64kB or 60%",
        )
    return (
        "A budget is a positive number of parameters (units k, M, B, T) or a percentage",
        "Write it like 4B, 350M, 800k, 1200000 or 60%",
    )


def _other(of: Measure) -> str:
    return "parameters" if of.in_bytes else "bytes"


def _instead(of: Measure, remedy: str) -> str:
    fitting = "total, non-embedding or active" if of.in_bytes else "weights or kv-cache"
    return f"{remedy}, or say with --budget-of that it is one of {fitting}"


@dataclass(frozen=True)
class Budget:
    """The target amount, and the tolerance within which candidates must lie."""

    amount: int
    """Parameters or bytes, depending on ``of``."""
    tolerance: float
    """The allowed deviation as a share of ``amount``: 0.02 allows ±2%."""
    of: Measure = Measure.TOTAL
    value_bytes: int = 2
    """Bytes per weight or cached number, where ``of`` is memory; two for bfloat16."""

    def __str__(self) -> str:
        return f"{self.amount:,} {self.of.unit} ±{100 * self.tolerance:.3g}%"

    @property
    def lowest(self) -> float:
        """The smallest amount within the tolerance."""
        return self.amount * (1 - self.tolerance)

    @property
    def highest(self) -> float:
        """The largest amount within the tolerance."""
        return self.amount * (1 + self.tolerance)


def format_amount(amount: float, of: Measure = Measure.TOTAL) -> str:
    """Format an amount to three digits, as users type it: 8.19B, 350M, 800k; for memory 16.1GB, 64kB."""
    giga, unit = ("G", "B") if of.in_bytes else ("B", "")
    for prefix, size in (("T", 1e12), (giga, 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= size * 0.9995:
            return f"{amount / size:.3g}{prefix}{unit}"
    return f"{amount:.0f}"
