"""How large the student may be: the number that a user types, and the band around it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from space.input_error import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_PATTERN = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z%]*)", re.IGNORECASE)
_REMEDY = "Write it like 4B, 350M, 800k, 1200000 or 60%"


@dataclass(frozen=True)
class BudgetText:
    """A budget as typed: a number of parameters, or a share of the teacher's."""

    amount: float
    """Parameters, or the share (0.6 for 60%)."""
    relative: bool

    @classmethod
    def parse(cls, text: str) -> BudgetText:
        """Read ``4B``, ``350M``, ``800k``, ``1200000`` or ``60%``.

        Raises:
            InputError: the text is no positive number with one of these units.
        """
        rule = "A budget is a positive number of parameters (units k, M, B, T) or a percentage"
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise InputError(rule, f"{text!r} is neither", _REMEDY)
        number, unit = float(match[1]), match[2].lower()
        if unit != "%" and unit not in _UNITS:
            raise InputError(rule, f"{text!r} has the unknown unit {match[2]!r}", _REMEDY)
        amount = number / 100 if unit == "%" else number * _UNITS[unit]
        if not 0 < amount < math.inf:
            raise InputError(rule, f"{text!r} is {'too large' if amount else 'not positive'}", _REMEDY)
        return cls(amount, unit == "%")

    def parameters(self, teacher_parameters: int) -> int:
        """The budget in parameters for a teacher of the given size."""
        return round(self.amount * teacher_parameters) if self.relative else round(self.amount)


@dataclass(frozen=True)
class Budget:
    """A number of parameters and the band around it that candidates have to lie in."""

    parameters: int
    tolerance: float
    """Half the width of the band as a share of ``parameters``: 0.02 allows ±2%."""

    def __str__(self) -> str:
        return f"{self.parameters:,} ±{100 * self.tolerance:.3g}%"

    @property
    def lowest(self) -> float:
        """The fewest parameters within the band."""
        return self.parameters * (1 - self.tolerance)

    @property
    def highest(self) -> float:
        """The most parameters within the band."""
        return self.parameters * (1 + self.tolerance)


def spoken(parameters: float) -> str:
    """A number of parameters as people say it, to three digits: 8.19B, 350M, 1.05M, 800k."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size * 0.9995:
            return f"{parameters / size:.3g}{unit}"
    return f"{parameters:.0f}"
