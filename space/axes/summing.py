"""Sums over the tensors and layers of a map, as polynomials in the sizes of the axes.

A dimension's layout gives a polynomial; a tensor is the product of its dimensions; and what belongs
to a layer counts once for each layer of its kind that a student keeps.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray
from transformers import DynamicCache

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, Tensor
from space.axes.layout import Each, Fixed, Layout, Together
from space.axes.likeness import layers_of_each_kind
from space.axes.polynomial import Polynomial

#: What a tensor counts for, given it and all of its entries.
Part = Callable[[Tensor, Polynomial], Polynomial]


def entries(layout: Layout, axis_map: AxisMap) -> Polynomial:
    """How many entries a dimension has."""
    match layout:
        case Fixed(length):
            return Polynomial.constant(length)
        case Together(parts):
            return Polynomial.sum(entries(part, axis_map) for part in parts)
        case Each(axis, units, inner):
            return units_of(axis, units, axis_map) * entries(inner, axis_map)


def units_of(axis: Axis | None, units: int, axis_map: AxisMap) -> Polynomial:
    """How many units of an ``Each`` a student keeps; queries are counted in their group.

    Args:
        axis: the ``Each``'s.
        units: the ``Each``'s, the teacher's.
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
    axis_map: AxisMap, tensors: Iterable[Tensor], part: Part = lambda tensor, size: size
) -> Polynomial:
    """The entries of tensors.

    Args:
        axis_map: the teacher's.
        tensors: of it, those that count.
        part: which part of a tensor counts; by default all of it.
    """

    @cache  # most layers repeat those of another
    def size(dimensions: tuple[Layout, ...]) -> Polynomial:
        product = Polynomial.constant(1)
        for dimension in dimensions:
            product = product * entries(dimension, axis_map)
        return product

    def whole(some: Sequence[Tensor]) -> Polynomial:
        return Polynomial.sum(part(tensor, size(tensor.dimensions)) for tensor in some)

    by_layer: dict[int | None, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_layer[tensor.layer].append(tensor)
    return whole(by_layer[None]) + sum_of_layers(axis_map, lambda layer: whole(by_layer[layer]))


def sum_of_layers(
    axis_map: AxisMap,
    count: Callable[[int], Polynomial],
    weight: Callable[[int | None], Fraction] = lambda window: Fraction(1),
    kept: Sequence[int] | None = None,
) -> Polynomial:
    """What layers count for, all together.

    Args:
        axis_map: the teacher's.
        count: of one layer, by its number; the same for all layers of a kind.
        weight: of a layer, by its window.
        kept: the layers to sum over; by default as many of each kind as a student keeps, weighted as
            the teacher's are on average.
    """
    kinds, reach = axis_map.kinds, windows(axis_map)
    counts = [count(layer) for layer in range(len(kinds))]
    assert all(counts[kinds.index(kind)] == one for kind, one in zip(kinds, counts, strict=True))
    if kept is not None:
        return Polynomial.sum(counts[layer] * weight(reach[layer]) for layer in kept)
    of_kind = Counter(kinds)
    parts = (
        counts[layer] * Polynomial.variable(kind) * (weight(reach[layer]) / of_kind[kind])
        for layer, kind in enumerate(kinds)
    )
    return Polynomial(Polynomial.sum(parts).terms, _kept_of_each_kind(kinds))


def windows(axis_map: AxisMap) -> tuple[int | None, ...]:
    """For each layer, the most tokens that its attention reaches; None for all. The cache's class tells."""
    layers = DynamicCache(config=axis_map.config).layers
    found = [getattr(layer, "sliding_window", None) for layer in layers[: axis_map.teacher.layers]]
    return (*found, *[None] * (axis_map.teacher.layers - len(found)))


def _kept_of_each_kind(kinds: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """For each kind, how many of it are kept of 0, 1, 2, … layers."""
    tables = [dict.fromkeys(kinds, 0)]
    tables += [layers_of_each_kind(kinds, layers) for layers in range(1, len(kinds) + 1)]
    return {kind: np.array([table[kind] for table in tables]) for kind in sorted(set(kinds))}
