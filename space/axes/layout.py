"""Layouts: how the entries along one dimension of a tensor are divided among the units of axes.

A layout is a tree. ``Fixed(n)`` is n entries that no axis changes. ``PerUnit(axis, units, inner)`` repeats
``inner`` once for each unit of an axis. ``Concatenated(parts)`` places its parts one after the other.
For example, the rows of

- a query projection are ``PerUnit(KV_HEADS, K, PerUnit(HEADS, G, Fixed(head_dim)))``: G queries per group;
- a fused gate and up projection are ``Concatenated((PerUnit(MLP, F, Fixed(1)),) * 2)``, or, where gate and
  up rows alternate, ``PerUnit(MLP, F, Fixed(2))``.

``units`` is the teacher's number. HEADS inside KV_HEADS counts the queries of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from space.axes.architecture import Architecture, Axis


@dataclass(frozen=True)
class Fixed:
    """Entries that are kept whatever the sizes are."""

    length: int

    def __str__(self) -> str:
        return str(self.length)


@dataclass(frozen=True)
class PerUnit:
    """``inner`` repeated for each unit of an axis; with axis None, all units are kept."""

    axis: Axis | None
    units: int
    inner: Layout

    @property
    def length(self) -> int:
        """The number of entries, over all units."""
        return self.units * self.inner.length

    def __str__(self) -> str:
        inner = "" if self.inner == Fixed(1) else f"×{self.inner}"
        return f"{self.axis or self.units}{inner}"


@dataclass(frozen=True)
class Concatenated:
    """Parts placed one after the other."""

    parts: tuple[Layout, ...]

    @property
    def length(self) -> int:
        """The number of entries, over all parts."""
        return sum(part.length for part in self.parts)

    def __str__(self) -> str:
        return f"({' + '.join(map(str, self.parts))})"


Layout = Fixed | PerUnit | Concatenated
#: Given an axis and the enclosing unit (a KV group or expert; None if there is none), the (units,) order.
Order = Callable[[Axis, int | None], Tensor]


def axes_of(layout: Layout) -> Iterator[Axis]:
    """Yield the axes that change a dimension, outermost first; an axis may occur more than once."""
    match layout:
        case PerUnit(axis, _, inner):
            if axis is not None:
                yield axis
            yield from axes_of(inner)
        case Concatenated(parts):
            for part in parts:
                yield from axes_of(part)


def positions(layout: Layout, order: Order, within: int | None = None) -> Tensor:
    """Return (length,) the original position of each entry of the sorted dimension.

    Args:
        layout: of the dimension.
        order: gives the units of each axis, best first; units that it leaves out are cut.
        within: the unit that encloses this layout, if any.
    """
    match layout:
        case Fixed(length):
            return torch.arange(length)
        case Concatenated(parts):
            ends = torch.tensor([part.length for part in parts]).cumsum(0)
            starts = (ends - torch.tensor([part.length for part in parts])).tolist()
            return torch.cat(
                [start + positions(part, order, within) for start, part in zip(starts, parts, strict=True)]
            )
        case PerUnit(axis, units, inner):
            chosen = torch.arange(units) if axis is None else order(axis, within)
            if next(axes_of(inner), None) is None:
                return (chosen[:, None] * inner.length + torch.arange(inner.length)).flatten()
            return torch.cat(
                [unit * inner.length + positions(inner, order, unit) for unit in chosen.tolist()]
            )


def kept_units(axis: Axis | None, units: int, student: Architecture, teacher: Architecture) -> int:
    """Return how many units of a ``PerUnit`` a student keeps; query heads are counted per group."""
    if axis is None:
        return units
    if axis is Axis.HEADS:
        return student.heads // student.kv_heads
    return student[axis] * units // teacher[axis]


def prefix(values: Tensor, dim: int, layout: Layout, student: Architecture, teacher: Architecture) -> Tensor:
    """Return the leading units along one dimension of a sorted tensor, as a view where possible.

    Args:
        values: a tensor with the teacher's sizes.
        dim: the dimension to cut.
        layout: of that dimension.
        student: the sizes to cut to.
        teacher: the sizes of ``values``.
    """
    match layout:
        case Fixed():
            return values
        case Concatenated(parts):
            cuts = values.split([part.length for part in parts], dim)
            return torch.cat(
                [prefix(cut, dim, part, student, teacher) for cut, part in zip(cuts, parts, strict=True)],
                dim,
            )
        case PerUnit(axis, units, inner):
            kept = kept_units(axis, units, student, teacher)
            if next(axes_of(inner), None) is None:
                return values.narrow(dim, 0, kept * inner.length)
            nested = values.unflatten(dim, (units, inner.length)).narrow(dim, 0, kept)
            return prefix(nested, dim + 1, inner, student, teacher).flatten(dim, dim + 1)


@dataclass(frozen=True)
class MovedPart:
    """How many of a dimension's entries belong to one axis, as probing found."""

    axis: Axis
    moved: int


def candidate_layouts(
    length: int,
    parts: tuple[MovedPart, ...],
    units: Mapping[Axis, int],
    groups: int,
    head_dim: int,
) -> tuple[Layout, ...]:
    """Return every layout that fits, the likeliest first; none if the dimension changes in an unknown way.

    Args:
        length: entries of the dimension.
        parts: how many of them belong to each axis.
        units: the teacher's size of each axis.
        groups: how many groups experts are routed in.
        head_dim: entries of a head.
    """
    builder = _LayoutBuilder(units, groups, head_dim)
    axes = [part.axis for part in parts]
    if not parts:
        return (Fixed(length),)
    if len(parts) == 1 and parts[0].moved == length:
        return builder.whole(parts[0].axis, length)
    if all(part.moved == length for part in parts):
        return builder.product(axes, length)
    if Axis.HEADS in axes and sum(part.moved for part in parts) <= length:
        return builder.fused(parts, length)
    return ()


class _LayoutBuilder:
    """Builds layouts for the sizes of one teacher."""

    def __init__(self, units: Mapping[Axis, int], groups: int, head_dim: int) -> None:
        self.units, self.groups, self.head_dim = units, groups, head_dim

    def each(self, axis: Axis, inner: Layout) -> Layout:
        """``inner`` for every unit of an axis; query heads and experts are nested in their groups."""
        units = self.units[axis]
        if axis is Axis.HEADS:
            groups = self.units[Axis.KV_HEADS]
            return PerUnit(Axis.KV_HEADS, groups, PerUnit(Axis.HEADS, units // groups, inner))
        if axis is Axis.EXPERTS:
            return PerUnit(None, self.groups, PerUnit(Axis.EXPERTS, units // self.groups, inner))
        return PerUnit(axis, units, inner)

    def head(self, length: int) -> Layout:
        """The entries of one head: fixed, or per unit of HEAD_DIM where that axis exists."""
        times, rest = divmod(length, self.head_dim)
        if Axis.HEAD_DIM not in self.units or rest:
            return Fixed(length)
        entries = PerUnit(Axis.HEAD_DIM, self.head_dim, Fixed(1))
        return entries if times == 1 else PerUnit(None, times, entries)

    def whole(self, axis: Axis, length: int) -> tuple[Layout, ...]:
        """Layouts of a dimension that belongs to one axis as a whole."""
        stride, rest = divmod(length, self.units[axis])
        if rest or not stride:
            return ()
        of_heads = axis in (Axis.HEADS, Axis.KV_HEADS)
        unit = self.head_dim if of_heads else 1
        found = [self.each(axis, self.head(stride) if of_heads else Fixed(stride))]
        repeats, odd = divmod(stride, unit)
        if not odd and 1 < repeats <= 8:
            part = self.each(axis, self.head(unit) if of_heads else Fixed(unit))
            found.insert(1 if axis is Axis.HEADS else 0, Concatenated((part,) * repeats))
        return tuple(found)

    def product(self, axes: list[Axis], length: int) -> tuple[Layout, ...]:
        """Layouts of a dimension that is a product of two axes: experts in a row, each with its neurons."""
        if set(axes) != {Axis.EXPERTS, Axis.EXPERT_MLP}:
            return ()
        neurons = self.units[Axis.EXPERT_MLP]
        if length != self.units[Axis.EXPERTS] * neurons:
            return ()
        return (self.each(Axis.EXPERTS, PerUnit(Axis.EXPERT_MLP, neurons, Fixed(1))),)

    def fused(self, parts: tuple[MovedPart, ...], length: int) -> tuple[Layout, ...]:
        """Layouts of fused queries, keys and values: in any order, or group by group."""
        moved = {part.axis: part.moved for part in parts}
        kv, heads = self.units[Axis.KV_HEADS], self.units[Axis.HEADS]
        fixed = length - sum(moved.values())
        if moved.keys() - {Axis.HEADS, Axis.KV_HEADS}:
            return ()
        query = moved[Axis.HEADS] // heads
        queries = self.each(Axis.HEADS, self.head(query))
        if Axis.KV_HEADS not in moved:
            return (
                (Concatenated((queries, Fixed(fixed))), Concatenated((Fixed(fixed), queries)))
                if fixed
                else ()
            )
        one, odd = divmod(moved[Axis.KV_HEADS], 2 * kv)
        if odd or fixed:
            return ()
        key = PerUnit(Axis.KV_HEADS, kv, self.head(one))
        pair = PerUnit(Axis.KV_HEADS, kv, self.head(2 * one))
        grouped = PerUnit(Axis.HEADS, heads // kv, self.head(query)), self.head(2 * one)
        return (
            Concatenated((queries, key, key)),
            PerUnit(Axis.KV_HEADS, kv, Concatenated(grouped)),
            Concatenated((key, queries, key)),
            Concatenated((key, key, queries)),
            Concatenated((queries, pair)),
            Concatenated((pair, queries)),
            PerUnit(Axis.KV_HEADS, kv, Concatenated(grouped[::-1])),
        )
