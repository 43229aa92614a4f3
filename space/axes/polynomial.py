"""Counts as polynomials in the sizes of the axes: exact for one architecture, fast for millions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from space.axes.architecture import Architecture, Axis

#: An axis's size, or the number of layers that are kept of a kind.
Variable = Axis | int
Powers = frozenset[tuple[Variable, int]]
_ONE: Powers = frozenset()


@dataclass(frozen=True)
class Polynomial:
    """A count as a function of the sizes of the axes.

    Its variables are the axes but for LAYERS, and the numbers of layers of each kind, which follow
    from the number of all layers.
    """

    terms: Mapping[Powers, Fraction]
    """The factor of each product of variables; none is zero."""
    layers: Mapping[int, NDArray[np.int64]] = field(default_factory=dict, compare=False)
    """For each kind of layer, how many of it are kept of 0, 1, 2, … layers."""

    @classmethod
    def constant(cls, number: int | Fraction) -> Polynomial:
        """The same whatever the sizes."""
        return cls({_ONE: Fraction(number)} if number else {})

    @classmethod
    def variable(cls, variable: Variable, power: int = 1) -> Polynomial:
        """An axis's size to a power, which may be negative as long as it cancels in the end."""
        return cls({frozenset({(variable, power)}): Fraction(1)})

    @classmethod
    def sum(cls, parts: Iterable[Polynomial]) -> Polynomial:
        """All parts added up."""
        total: dict[Powers, Fraction] = {}
        for part in parts:
            for powers, factor in part.terms.items():
                total[powers] = total.get(powers, Fraction(0)) + factor
        return cls({powers: factor for powers, factor in total.items() if factor})

    def __add__(self, other: Polynomial) -> Polynomial:
        return Polynomial(Polynomial.sum((self, other)).terms, {**self.layers, **other.layers})

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + other * -1

    def __mul__(self, other: Polynomial | Fraction | int) -> Polynomial:
        if not isinstance(other, Polynomial):
            other = Polynomial.constant(other)
        products = (
            Polynomial({_product(mine, yours): a * b})
            for mine, a in self.terms.items()
            for yours, b in other.terms.items()
        )
        return Polynomial(Polynomial.sum(products).terms, {**self.layers, **other.layers})

    def replaced(self, variable: Variable, by: Polynomial) -> Polynomial:
        """With a polynomial in place of a variable that no term divides by."""
        parts = []
        for powers, factor in self.terms.items():
            left = dict(powers)
            power = left.pop(variable, 0)
            assert power >= 0, f"a term is divided by {variable}"
            part = Polynomial({frozenset(left.items()): factor})
            for _ in range(power):
                part = part * by
            parts.append(part)
        return Polynomial(Polynomial.sum(parts).terms, self.layers)

    def split(self, axis: Axis) -> tuple[Polynomial, Polynomial]:
        """(a, b) such that the count is a + b × the size of ``axis``; it has to be linear in it."""
        parts: tuple[dict[Powers, Fraction], dict[Powers, Fraction]] = ({}, {})
        for powers, factor in self.terms.items():
            left = dict(powers)
            power = left.pop(axis, 0)
            assert power in (0, 1), f"the count is not linear in {axis}"
            parts[power][frozenset(left.items())] = factor
        constant, slope = (Polynomial(part, self.layers) for part in parts)
        return constant, slope

    def depends_on(self, axis: Axis) -> bool:
        """Whether the count moves with an axis."""
        names = {variable for powers in self.terms for variable, _ in powers}
        kinds = axis is Axis.LAYERS and any(type(name) is int for name in names)
        return kinds or axis in names

    def at(self, sizes: Mapping[Axis, NDArray[np.int64]]) -> NDArray[np.int64]:
        """The counts at arrays of sizes, all of one shape."""
        values: dict[Variable, NDArray[np.int64]] = dict(sizes.items())
        values |= {kind: kept[sizes[Axis.LAYERS]] for kind, kept in self.layers.items()}
        total = _horner(self._numerators, values)
        if self._denominator > 1:
            total = total // self._denominator
        return np.broadcast_to(total, next(iter(sizes.values())).shape)

    def of(self, architecture: Architecture) -> int:
        """The count of one architecture."""
        values: dict[Variable, int] = {axis: architecture[axis] for axis in Axis}
        values |= {kind: int(kept[architecture.layers]) for kind, kept in self.layers.items()}
        return int(_horner(self._numerators, values)) // self._denominator

    @cached_property
    def _denominator(self) -> int:
        return math.lcm(*(factor.denominator for factor in self.terms.values()))

    @cached_property
    def _numerators(self) -> dict[Powers, int]:
        assert min((p for powers in self.terms for _, p in powers), default=1) > 0, "a quotient is left"
        return {powers: int(factor * self._denominator) for powers, factor in self.terms.items()}


def _product(one: Powers, other: Powers) -> Powers:
    powers = Counter(dict(one))
    for variable, power in other:
        powers[variable] += power
    return frozenset((variable, power) for variable, power in powers.items() if power)


def _horner(terms: Mapping[Powers, int], values: Mapping[Variable, Any]) -> Any:
    """Horner's rule, the variable that most terms share first."""
    shared = Counter(variable for powers in terms for variable, _ in powers)
    if not shared:
        return sum(terms.values())
    most = max(shared, key=lambda variable: (shared[variable], str(variable)))
    inside: dict[Powers, int] = {}
    outside: dict[Powers, int] = {}
    for powers, factor in terms.items():
        if most in dict(powers):
            inside[_product(powers, frozenset({(most, -1)}))] = factor
        else:
            outside[powers] = factor
    product = _horner(inside, values) * values[most]
    return product + _horner(outside, values) if outside else product
