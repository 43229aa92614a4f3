"""Counts as polynomials in the sizes of the axes: exact for one architecture, fast for millions.

The layout of a dimension gives a polynomial, and a tensor's polynomial is the product over its
dimensions. A layer's tensors count once for each layer of that kind that a student keeps.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import DynamicCache

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, MappedTensor
from space.axes.layers import layers_of_each_kind
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit

#: The size of an axis, or, by the number of a kind of layers, how many of that kind are kept.
Variable = Axis | int
Powers = frozenset[tuple[Variable, int]]
_ONE: Powers = frozenset()


@dataclass(frozen=True)
class Polynomial:
    """A count as a function of the sizes of the axes.

    The variables are all axes except LAYERS, and the number of layers of each kind, which follows
    from the total number of layers.
    """

    terms: Mapping[Powers, Fraction]
    """The coefficient of each product of variables; none is zero."""
    layers: Mapping[int, NDArray[np.int64]] = field(default_factory=dict, compare=False)
    """For each kind, how many of its layers a student with 0, 1, 2, … layers keeps."""

    @classmethod
    def constant(cls, number: int | Fraction) -> Polynomial:
        """Return a polynomial that does not depend on the sizes."""
        return cls({_ONE: Fraction(number)} if number else {})

    @classmethod
    def variable(cls, variable: Variable, power: int = 1) -> Polynomial:
        """Return a variable to a power, which may be negative as long as it cancels in the end."""
        return cls({frozenset({(variable, power)}): Fraction(1)})

    @classmethod
    def sum(cls, parts: Iterable[Polynomial]) -> Polynomial:
        """Return the sum of the parts."""
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
        """Substitute a polynomial for a variable, which no term may divide by."""
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
        """Return (a, b) such that the count is a + b × the size of ``axis``, in which it must be linear."""
        parts: tuple[dict[Powers, Fraction], dict[Powers, Fraction]] = ({}, {})
        for powers, factor in self.terms.items():
            left = dict(powers)
            power = left.pop(axis, 0)
            assert power in (0, 1), f"the count is not linear in {axis}"
            parts[power][frozenset(left.items())] = factor
        constant, slope = (Polynomial(part, self.layers) for part in parts)
        return constant, slope

    def depends_on(self, axis: Axis) -> bool:
        """Return whether the count depends on the size of an axis."""
        names = {variable for powers in self.terms for variable, _ in powers}
        kinds = axis is Axis.LAYERS and any(type(name) is int for name in names)
        return kinds or axis in names

    def at(self, sizes: Mapping[Axis, NDArray[np.int64]]) -> NDArray[np.int64]:
        """Evaluate the count at arrays of sizes, all of one shape."""
        values: dict[Variable, NDArray[np.int64]] = dict(sizes.items())
        values |= {kind: kept[sizes[Axis.LAYERS]] for kind, kept in self.layers.items()}
        total = _horner(self._numerators, values)
        if self._denominator > 1:
            total = total // self._denominator
        return np.broadcast_to(total, next(iter(sizes.values())).shape)

    def of(self, architecture: Architecture) -> int:
        """Evaluate the count of one architecture."""
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
    """Evaluate by Horner's rule, factoring out the variable that most terms share first."""
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


#: Maps a tensor and the number of its entries to what counts of them.
Part = Callable[[MappedTensor, Polynomial], Polynomial]


def entry_count(layout: Layout, axis_map: AxisMap) -> Polynomial:
    """Return the number of entries of a dimension."""
    match layout:
        case Fixed(length):
            return Polynomial.constant(length)
        case Concatenated(parts):
            return Polynomial.sum(entry_count(part, axis_map) for part in parts)
        case PerUnit(axis, units, inner):
            return units_of(axis, units, axis_map) * entry_count(inner, axis_map)


def units_of(axis: Axis | None, units: int, axis_map: AxisMap) -> Polynomial:
    """Return how many units of a ``PerUnit`` a student keeps; query heads are counted per group.

    Args:
        axis: of the ``PerUnit``.
        units: of the ``PerUnit``: the teacher's number.
        axis_map: the teacher's.
    """
    if axis is None:
        return Polynomial.constant(units)
    teacher = axis_map.teacher
    if axis is Axis.HEADS:
        group = Polynomial.variable(Axis.HEADS) * Polynomial.variable(Axis.KV_HEADS, -1)
        return group * (Fraction(units * teacher.kv_heads, teacher.heads))
    return Polynomial.variable(axis) * Fraction(units, teacher[axis])


def sum_of_tensors(
    axis_map: AxisMap, tensors: Iterable[MappedTensor], part: Part = lambda tensor, size: size
) -> Polynomial:
    """Return the total number of entries of tensors.

    Args:
        axis_map: the teacher's.
        tensors: the tensors of the map that count.
        part: which part of a tensor counts; by default all of it.
    """

    @cache  # most layers repeat the dimensions of another
    def size(dimensions: tuple[Layout, ...]) -> Polynomial:
        product = Polynomial.constant(1)
        for dimension in dimensions:
            product = product * entry_count(dimension, axis_map)
        return product

    def whole(some: Sequence[MappedTensor]) -> Polynomial:
        return Polynomial.sum(part(tensor, size(tensor.dimensions)) for tensor in some)

    by_layer: dict[int | None, list[MappedTensor]] = defaultdict(list)
    for tensor in tensors:
        by_layer[tensor.layer].append(tensor)
    return whole(by_layer[None]) + sum_of_layers(axis_map, lambda layer: whole(by_layer[layer]))


def sum_of_layers(
    axis_map: AxisMap,
    count: Callable[[int], Polynomial],
    weight: Callable[[int | None], Fraction] = lambda window: Fraction(1),
    kept: Sequence[int] | None = None,
) -> Polynomial:
    """Return a weighted sum over the layers of a student.

    Args:
        axis_map: the teacher's.
        count: of one layer, by its number; equal for all layers of a kind.
        weight: of a layer, by its attention window.
        kept: the layers to sum over; by default as many of each kind as a student keeps, each with the
            average weight of the teacher's layers of that kind.
    """
    kinds, windows = axis_map.kinds, attention_windows(axis_map)
    counts = [count(layer) for layer in range(len(kinds))]
    assert all(counts[kinds.index(kind)] == one for kind, one in zip(kinds, counts, strict=True))
    if kept is not None:
        return Polynomial.sum(counts[layer] * weight(windows[layer]) for layer in kept)
    of_kind = Counter(kinds)
    parts = (
        counts[layer] * Polynomial.variable(kind) * (weight(windows[layer]) / of_kind[kind])
        for layer, kind in enumerate(kinds)
    )
    return Polynomial(Polynomial.sum(parts).terms, _kept_of_each_kind(kinds))


def attention_windows(axis_map: AxisMap) -> tuple[int | None, ...]:
    """Return each layer's attention window in tokens as ``DynamicCache`` reports it; None if unlimited."""
    layers = DynamicCache(config=axis_map.config).layers
    found = [getattr(layer, "sliding_window", None) for layer in layers[: axis_map.teacher.layers]]
    return (*found, *[None] * (axis_map.teacher.layers - len(found)))


def _kept_of_each_kind(kinds: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """Return, for each kind, how many of its layers a student with 0, 1, 2, … layers keeps."""
    tables = [dict.fromkeys(kinds, 0)]
    tables += [layers_of_each_kind(kinds, layers) for layers in range(1, len(kinds) + 1)]
    return {kind: np.array([table[kind] for table in tables]) for kind in sorted(set(kinds))}
