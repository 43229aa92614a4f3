"""An architecture that a user names in part: ``--try hidden=3072,mlp=9216``; the rest follows.

Sizes that are not named stay the teacher's, but for that of the axis which the budget solves. Where such an
architecture does not come near the budget, the one most like the teacher that does is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget, spoken
from space.enumeration.choices import grid
from space.enumeration.enumeration import near_budget, nearest_to_budget
from space.enumeration.limits import Limit, Limits, axis_named, check_limits
from space.enumeration.search_space import AXES, Architectures, SearchSpace
from space.input_error import InputError

Table = NDArray[np.int64]
"""(n, axes) sizes, the axes in the order of ``Axis``."""
_FORMS = "Write --try hidden=3072,mlp=9216"


@dataclass(frozen=True)
class Named:
    """The sizes that a user names."""

    text: str
    """As typed."""
    sizes: Mapping[Axis, int]

    @property
    def limits(self) -> Limits:
        """These sizes and no others, of each axis that is named."""
        return {axis: Limit(axis, f"--try {axis}={size}", sizes=(size,)) for axis, size in self.sizes.items()}


def read_named(text: str) -> Named:
    """Read ``hidden=3072,mlp=9216``.

    Raises:
        InputError: an axis is unknown or named twice, or a size is no whole number.
    """
    sizes: dict[Axis, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if not re.fullmatch(r"\s*\d+\s*", size):
            raise InputError("--try takes axes with one size each", f"{text!r} holds {part!r}", _FORMS)
        axis = axis_named(name)
        if axis in sizes:
            raise InputError("--try takes each axis once", f"{text!r} names {axis} twice", _FORMS)
        sizes[axis] = int(size)
    return Named(text, sizes)


def completions(named: Named, axis_map: AxisMap, space: SearchSpace, limits: Limits) -> Architectures:
    """What a user may mean, the likeliest first: what is not named as the teacher has it, or little changed.

    Args:
        named: what was said of it.
        axis_map: the teacher's.
        space: within the budget.
        limits: of the user on that space; a size that is named overrules them.

    Raises:
        InputError: a size is none that the class allows, or no architecture with these sizes lies near the
            budget.
    """
    budget = space.budget
    others = {axis: limit for axis, limit in limits.items() if axis not in named.sizes} | dict(named.limits)
    near = near_budget(axis_map, budget, others)
    table = np.concatenate([_like_teacher(named, axis_map, space), near[_changes(near, named, axis_map)]])
    if not len(table):
        raise _none_near(named, *nearest_to_budget(axis_map, budget, others), space)
    return Architectures(table)


def _like_teacher(named: Named, axis_map: AxisMap, space: SearchSpace) -> Table:
    """(0 or 1, axes) what is left open as the teacher has it, but for the axis that is solved."""
    limits = {axis: Limit(axis, f"--keep {axis}", keep=True) for axis in axis_map.free}
    if (solved := space.solved) is not None:
        limits[solved] = Limit(solved, f"--sizes {solved}", span=(1, axis_map.teacher[solved]))
    try:
        return near_budget(axis_map, space.budget, limits | dict(named.limits))
    except InputError:  # such sizes do not go with the teacher's; others may
        return np.empty((0, len(AXES)), dtype=np.int64)


def _changes(table: Table, named: Named, axis_map: AxisMap) -> NDArray[np.intp]:
    """The rows in order, by how far the logarithms of their other sizes lie from the teacher's in sum."""
    axes = [axis for axis in axis_map.free if axis not in named.sizes]
    teacher = np.array([axis_map.teacher[axis] for axis in axes])
    shares = table[:, [AXES.index(axis) for axis in axes]] / teacher
    return np.argsort(np.round(np.abs(np.log(shares)).sum(1), 9), kind="stable")


def _none_near(named: Named, nearest: Architecture, amount: int, space: SearchSpace) -> InputError:
    budget = space.budget
    return InputError(
        "An architecture by hand has to lie within the budget's tolerance",
        f"--try {named.text} comes no nearer than {amount:,} {budget.of.unit} ({nearest.label}), and "
        f"{budget} was asked",
        f"Try {_nearest_sizes(named, space)}, or take {_as_budget(amount, budget)} as --budget",
    )


def _as_budget(amount: int, budget: Budget) -> str:
    """An amount as people type it, exactly if three digits would leave the band around it."""
    text = spoken(amount, budget.of)
    return text if budget.tolerance >= 0.005 else str(amount)


def _nearest_sizes(named: Named, space: SearchSpace) -> str:
    """The sizes of the named axes in the space that are nearest to those named."""
    wanted = np.array(list(named.sizes.values()))
    sizes = space.table[:, [AXES.index(axis) for axis in named.sizes]]
    row = int(np.abs(np.log(sizes / wanted)).sum(1).argmin())
    return ",".join(f"{axis}={size}" for axis, size in zip(named.sizes, sizes[row].tolist(), strict=True))


def of_sizes(sizes: Mapping[Axis, int], axis_map: AxisMap) -> Architecture:
    """The architecture of these sizes whatever the budget; all others are the teacher's.

    Query heads follow their KV heads unless they are named.

    Raises:
        InputError: the teacher lacks an axis, or its class does not allow the sizes.
    """
    named = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    check_limits(
        {axis: Limit(axis, f"{axis}={size}", sizes=(size,)) for axis, size in sizes.items()}, axis_map
    )
    choices = {axis: [sizes.get(axis, axis_map.teacher[axis])] for axis in axis_map.free}
    found = grid(axis_map, choices, whole_groups=Axis.HEADS not in sizes)
    if not len(found[Axis.LAYERS]):
        raise InputError(
            "The sizes of a student have to go together in its class",
            f"{named} beside the teacher's others do not",
            "Query heads are a multiple of the KV heads, and no more to each than in the teacher",
        )
    return Architecture(*(int(found[axis][0]) for axis in AXES))
