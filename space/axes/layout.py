"""How the entries along one dimension of a tensor are made up of the units of axes.

A dimension is a tree. ``Fixed(n)`` is n entries that no axis moves. ``Each(axis, units, inner)`` is
``inner`` once for each unit of an axis, one after the other. ``Together(parts)`` is its parts one
after the other. So the rows of

- a query projection are ``Each(KV_HEADS, K, Each(HEADS, G, Fixed(head_dim)))``: G queries a group;
- a gate and up projection in one tensor are ``Together((Each(MLP, F, Fixed(1)),) * 2)``, or, where
  gates and ups alternate, ``Each(MLP, F, Fixed(2))``.

``units`` are the teacher's. HEADS inside KV_HEADS counts the queries of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from space.axes.architecture import Architecture, Axis


@dataclass(frozen=True)
class Fixed:
    """Entries that stay whatever the sizes are."""

    length: int

    def __str__(self) -> str:
        return str(self.length)


@dataclass(frozen=True)
class PerUnit:
    """``inner`` for each unit; units of no axis (None) all stay."""

    axis: Axis | None
    units: int
    inner: Layout

    @property
    def length(self) -> int:
        """Entries of all units."""
        return self.units * self.inner.length

    def __str__(self) -> str:
        inner = "" if self.inner == Fixed(1) else f"×{self.inner}"
        return f"{self.axis or self.units}{inner}"


@dataclass(frozen=True)
class Concatenated:
    """Parts, one after the other."""

    parts: tuple[Layout, ...]

    @property
    def length(self) -> int:
        """Entries of all parts."""
        return sum(part.length for part in self.parts)

    def __str__(self) -> str:
        return f"({' + '.join(map(str, self.parts))})"


Layout = Fixed | PerUnit | Concatenated
#: (units,) the order of an axis's units, within a unit of the axis around it or of another dimension.
Order = Callable[[Axis, int | None], Tensor]


def axes_of(layout: Layout) -> Iterator[Axis]:
    """The axes that move a dimension, outermost first; one may come more than once."""
    match layout:
        case PerUnit(axis, _, inner):
            if axis is not None:
                yield axis
            yield from axes_of(inner)
        case Concatenated(parts):
            for part in parts:
                yield from axes_of(part)


def positions(layout: Layout, order: Order, within: int | None = None) -> Tensor:
    """(length,) where each entry of the sorted dimension stood before.

    Args:
        layout: of the dimension.
        order: the units of each axis, best first; fewer than all are a cut.
        within: the unit of the axis around this part.
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
    """How many of the units of an ``PerUnit`` a student keeps; queries are counted in their group."""
    if axis is None:
        return units
    if axis is Axis.HEADS:
        return student.heads // student.kv_heads
    return student[axis] * units // teacher[axis]


def prefix(
    values: Tensor, place: int, layout: Layout, student: Architecture, teacher: Architecture
) -> Tensor:
    """The leading units along one dimension of a sorted tensor; a view where one is possible.

    Args:
        values: a tensor with the whole dimension.
        place: the dimension's number.
        layout: of the dimension.
        student: whose sizes are cut to.
        teacher: whose sizes ``values`` has.
    """
    match layout:
        case Fixed():
            return values
        case Concatenated(parts):
            cuts = values.split([part.length for part in parts], place)
            return torch.cat(
                [prefix(cut, place, part, student, teacher) for cut, part in zip(cuts, parts, strict=True)],
                place,
            )
        case PerUnit(axis, units, inner):
            few = kept_units(axis, units, student, teacher)
            if next(axes_of(inner), None) is None:
                return values.narrow(place, 0, few * inner.length)
            nested = values.unflatten(place, (units, inner.length)).narrow(place, 0, few)
            return prefix(nested, place + 1, inner, student, teacher).flatten(place, place + 1)


@dataclass(frozen=True)
class MovedPart:
    """``moved`` of a dimension's entries belong to an axis."""

    axis: Axis
    moved: int


def candidate_layouts(
    length: int,
    parts: tuple[MovedPart, ...],
    units: Mapping[Axis, int],
    groups: int,
    head_dim: int,
) -> tuple[Layout, ...]:
    """Every layout that fits, the likeliest first; none if the dimension moves in an unknown way.

    Args:
        length: entries of the dimension.
        parts: what moves it.
        units: the teacher's size of each axis.
        groups: that experts are routed in.
        head_dim: entries of a head.
    """
    of = _Of(units, groups, head_dim)
    axes = [part.axis for part in parts]
    if not parts:
        return (Fixed(length),)
    if len(parts) == 1 and parts[0].moved == length:
        return of.whole(parts[0].axis, length)
    if all(part.moved == length for part in parts):
        return of.product(axes, length)
    if Axis.HEADS in axes and sum(part.moved for part in parts) <= length:
        return of.fused(parts, length)
    return ()


class _Of:
    """Layouts for the sizes of one teacher."""

    def __init__(self, units: Mapping[Axis, int], groups: int, head_dim: int) -> None:
        self.units, self.groups, self.head_dim = units, groups, head_dim

    def each(self, axis: Axis, inner: Layout) -> Layout:
        """``inner`` for every unit of an axis, within the groups that the axis is in."""
        units = self.units[axis]
        if axis is Axis.HEADS:
            groups = self.units[Axis.KV_HEADS]
            return PerUnit(Axis.KV_HEADS, groups, PerUnit(Axis.HEADS, units // groups, inner))
        if axis is Axis.EXPERTS:
            return PerUnit(None, self.groups, PerUnit(Axis.EXPERTS, units // self.groups, inner))
        return PerUnit(axis, units, inner)

    def head(self, length: int) -> Layout:
        """What belongs to one head: so many entries, or heads of a size that moves."""
        times, rest = divmod(length, self.head_dim)
        if Axis.HEAD_DIM not in self.units or rest:
            return Fixed(length)
        entries = PerUnit(Axis.HEAD_DIM, self.head_dim, Fixed(1))
        return entries if times == 1 else PerUnit(None, times, entries)

    def whole(self, axis: Axis, length: int) -> tuple[Layout, ...]:
        """One axis moves all of a dimension."""
        stride, rest = divmod(length, self.units[axis])
        if rest or not stride:
            return ()
        of_heads = axis in (Axis.HEADS, Axis.KV_HEADS)
        unit = self.head_dim if of_heads else 1
        found = [self.each(axis, self.head(stride) if of_heads else Fixed(stride))]
        repeats, odd = divmod(stride, unit)
        if not odd and 1 < repeats <= 8:
            apart = Concatenated((self.each(axis, self.head(unit) if of_heads else Fixed(unit)),) * repeats)
            found.insert(0 if axis is not Axis.HEADS else 1, apart)
        return tuple(found)

    def product(self, axes: list[Axis], length: int) -> tuple[Layout, ...]:
        """Two axes multiply: experts in one row, each with its neurons."""
        if set(axes) != {Axis.EXPERTS, Axis.EXPERT_MLP}:
            return ()
        neurons = self.units[Axis.EXPERT_MLP]
        if length != self.units[Axis.EXPERTS] * neurons:
            return ()
        return (self.each(Axis.EXPERTS, PerUnit(Axis.EXPERT_MLP, neurons, Fixed(1))),)

    def fused(self, parts: tuple[MovedPart, ...], length: int) -> tuple[Layout, ...]:
        """Queries, keys and values in one tensor: in any order, or group by group."""
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
