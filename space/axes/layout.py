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

from collections.abc import Callable, Iterator
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
class Each:
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
class Together:
    """Parts, one after the other."""

    parts: tuple[Layout, ...]

    @property
    def length(self) -> int:
        """Entries of all parts."""
        return sum(part.length for part in self.parts)

    def __str__(self) -> str:
        return f"({' + '.join(map(str, self.parts))})"


Layout = Fixed | Each | Together
#: (units,) the order of an axis's units, within a unit of the axis around it or of another dimension.
Order = Callable[[Axis, int | None], Tensor]


def axes_of(layout: Layout) -> Iterator[Axis]:
    """The axes that move a dimension, outermost first; one may come more than once."""
    match layout:
        case Each(axis, _, inner):
            if axis is not None:
                yield axis
            yield from axes_of(inner)
        case Together(parts):
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
        case Together(parts):
            ends = torch.tensor([part.length for part in parts]).cumsum(0)
            starts = (ends - torch.tensor([part.length for part in parts])).tolist()
            return torch.cat(
                [start + positions(part, order, within) for start, part in zip(starts, parts, strict=True)]
            )
        case Each(axis, units, inner):
            chosen = torch.arange(units) if axis is None else order(axis, within)
            if next(axes_of(inner), None) is None:
                return (chosen[:, None] * inner.length + torch.arange(inner.length)).flatten()
            return torch.cat(
                [unit * inner.length + positions(inner, order, unit) for unit in chosen.tolist()]
            )


def kept(axis: Axis | None, units: int, student: Architecture, teacher: Architecture) -> int:
    """How many of the units of an ``Each`` a student keeps; queries are counted in their group."""
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
        case Together(parts):
            cuts = values.split([part.length for part in parts], place)
            return torch.cat(
                [prefix(cut, place, part, student, teacher) for cut, part in zip(cuts, parts, strict=True)],
                place,
            )
        case Each(axis, units, inner):
            few = kept(axis, units, student, teacher)
            if next(axes_of(inner), None) is None:
                return values.narrow(place, 0, few * inner.length)
            nested = values.unflatten(place, (units, inner.length)).narrow(place, 0, few)
            return prefix(nested, place + 1, inner, student, teacher).flatten(place, place + 1)
