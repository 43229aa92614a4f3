"""What layouts a dimension may have, once it is known by how much each axis moves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from space.axes.architecture import Axis
from space.axes.layout import Each, Fixed, Layout, Together


@dataclass(frozen=True)
class Part:
    """``moved`` of a dimension's entries belong to an axis."""

    axis: Axis
    moved: int


def candidates(
    length: int,
    parts: tuple[Part, ...],
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
            return Each(Axis.KV_HEADS, groups, Each(Axis.HEADS, units // groups, inner))
        if axis is Axis.EXPERTS:
            return Each(None, self.groups, Each(Axis.EXPERTS, units // self.groups, inner))
        return Each(axis, units, inner)

    def head(self, length: int) -> Layout:
        """What belongs to one head: so many entries, or heads of a size that moves."""
        times, rest = divmod(length, self.head_dim)
        if Axis.HEAD_DIM not in self.units or rest:
            return Fixed(length)
        entries = Each(Axis.HEAD_DIM, self.head_dim, Fixed(1))
        return entries if times == 1 else Each(None, times, entries)

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
            apart = Together((self.each(axis, self.head(unit) if of_heads else Fixed(unit)),) * repeats)
            found.insert(0 if axis is not Axis.HEADS else 1, apart)
        return tuple(found)

    def product(self, axes: list[Axis], length: int) -> tuple[Layout, ...]:
        """Two axes multiply: experts in one row, each with its neurons."""
        if set(axes) != {Axis.EXPERTS, Axis.EXPERT_MLP}:
            return ()
        neurons = self.units[Axis.EXPERT_MLP]
        if length != self.units[Axis.EXPERTS] * neurons:
            return ()
        return (self.each(Axis.EXPERTS, Each(Axis.EXPERT_MLP, neurons, Fixed(1))),)

    def fused(self, parts: tuple[Part, ...], length: int) -> tuple[Layout, ...]:
        """Queries, keys and values in one tensor: in any order, or group by group."""
        moved = {part.axis: part.moved for part in parts}
        kv, heads = self.units[Axis.KV_HEADS], self.units[Axis.HEADS]
        fixed = length - sum(moved.values())
        if moved.keys() - {Axis.HEADS, Axis.KV_HEADS}:
            return ()
        query = moved[Axis.HEADS] // heads
        queries = self.each(Axis.HEADS, self.head(query))
        if Axis.KV_HEADS not in moved:
            return (Together((queries, Fixed(fixed))), Together((Fixed(fixed), queries))) if fixed else ()
        one, odd = divmod(moved[Axis.KV_HEADS], 2 * kv)
        if odd or fixed:
            return ()
        key = Each(Axis.KV_HEADS, kv, self.head(one))
        pair = Each(Axis.KV_HEADS, kv, self.head(2 * one))
        grouped = Each(Axis.HEADS, heads // kv, self.head(query)), self.head(2 * one)
        return (
            Together((queries, key, key)),
            Each(Axis.KV_HEADS, kv, Together(grouped)),
            Together((key, queries, key)),
            Together((key, key, queries)),
            Together((queries, pair)),
            Together((pair, queries)),
            Each(Axis.KV_HEADS, kv, Together(grouped[::-1])),
        )
