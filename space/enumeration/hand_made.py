"""Architectures that nobody searched for: the baselines, and those that a user names with ``--try``.

Sizes that are not named stay the teacher's, but for that of the axis which the budget solves. Where such an
architecture does not come near the budget, the one most like the teacher that does is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget, format_amount
from space.enumeration.choices import grid
from space.enumeration.enumeration import near_budget, nearest_to_budget
from space.enumeration.limits import NEURONS, Limit, Limits, axis_named, check_limits
from space.enumeration.search_space import AXES, Architectures, SearchSpace
from space.input_error import InputError

UNIFORM, MLP_AND_HEADS, DEPTH = "uniform", "mlp-heads", "depth"
#: KV heads move in steps too coarse to be compared; among equals, more of them come first.
_WIDTHS = (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.EXPERTS, Axis.EXPERT_MLP, Axis.SHARED_MLP, Axis.HEAD_DIM)


def baselines(space: SearchSpace, teacher: Architecture) -> dict[str, Architecture]:
    """Hand-made architectures within the budget, by name.

    One that the space does not hold is left out, and so is one that is the same as another before it.

    - ``uniform``: all widths shrunk alike, experts among them, no layer removed.
    - ``mlp-heads``: the neurons of MLPs and experts, and heads, shrunk alike; all else kept.
    - ``depth``: layers removed, all widths kept but for what the solved axis needs to meet the budget.
    """
    widths = [axis for axis in _WIDTHS if len(space.values(axis)) > 1]
    inside = [axis for axis in widths if axis in (*NEURONS, Axis.HEADS)]
    whole_layers = space.column(Axis.LAYERS) == teacher.layers
    outside = [axis for axis in Axis if axis not in (*inside, Axis.KV_HEADS)]
    rows = {
        UNIFORM: _most_even(space, teacher, widths, whole_layers),
        MLP_AND_HEADS: _most_even(space, teacher, inside, _kept(space, teacher, outside)),
        DEPTH: _deepest(space, teacher),
    }
    found: dict[str, Architecture] = {}
    for name, row in rows.items():
        if row is not None and (architecture := space.architectures[row]) not in found.values():
            found[name] = architecture
    return found


def _kept(space: SearchSpace, teacher: Architecture, axes: Sequence[Axis]) -> NDArray[np.bool_]:
    """(n,) whether all of these axes are as large as the teacher's."""
    kept = np.ones(len(space), dtype=bool)
    for axis in axes:
        kept &= space.column(axis) == teacher[axis]
    return kept


def _most_even(
    space: SearchSpace, teacher: Architecture, axes: Sequence[Axis], among: NDArray[np.bool_]
) -> int | None:
    """The row in which the axes shrink most evenly: least in the range of the logarithms of their shares.

    Rounded, so that ties are ties on every machine; among equals whoever keeps more of its heads comes first.
    """
    if not among.any() or not axes:
        return None
    shares = np.log([space.column(axis) / teacher[axis] for axis in axes])
    unevenness = np.round(shares.max(0) - shares.min(0), 9)
    order = np.lexsort((-space.column(Axis.HEADS), -space.column(Axis.KV_HEADS), unevenness, ~among))
    return int(order[0])


def _deepest(space: SearchSpace, teacher: Architecture) -> int | None:
    """The row that keeps the widths, and of the solved axis the most; without one, the most layers."""
    fixed = [axis for axis in space.free_axes if axis is not Axis.LAYERS]
    shallow = _kept(space, teacher, fixed) & (space.column(Axis.LAYERS) < teacher.layers)
    if not shallow.any():
        return None
    most = space.column(space.solved or Axis.LAYERS)
    return int(np.where(shallow, most, -1).argmax())


Table = NDArray[np.int64]
"""(n, axes) sizes, the axes in the order of ``Axis``."""
_FORMS = "Write --try hidden=3072,mlp=9216"


@dataclass(frozen=True)
class PartialArchitecture:
    """The sizes that a user names."""

    text: str
    """As typed."""
    sizes: Mapping[Axis, int]

    @property
    def limits(self) -> Limits:
        """These sizes and no others, of each axis that is named."""
        return {axis: Limit(axis, f"--try {axis}={size}", sizes=(size,)) for axis, size in self.sizes.items()}


def parse_architecture(text: str) -> PartialArchitecture:
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
    return PartialArchitecture(text, sizes)


def completions(
    named: PartialArchitecture, axis_map: AxisMap, space: SearchSpace, limits: Limits
) -> Architectures:
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


def _like_teacher(named: PartialArchitecture, axis_map: AxisMap, space: SearchSpace) -> Table:
    """(0 or 1, axes) what is left open as the teacher has it, but for the axis that is solved."""
    limits = {axis: Limit(axis, f"--keep {axis}", keep=True) for axis in axis_map.free}
    if (solved := space.solved) is not None:
        limits[solved] = Limit(solved, f"--sizes {solved}", span=(1, axis_map.teacher[solved]))
    try:
        return near_budget(axis_map, space.budget, limits | dict(named.limits))
    except InputError:  # such sizes do not go with the teacher's; others may
        return np.empty((0, len(AXES)), dtype=np.int64)


def _changes(table: Table, named: PartialArchitecture, axis_map: AxisMap) -> NDArray[np.intp]:
    """The rows in order, by how far the logarithms of their other sizes lie from the teacher's in sum."""
    axes = [axis for axis in axis_map.free if axis not in named.sizes]
    teacher = np.array([axis_map.teacher[axis] for axis in axes])
    shares = table[:, [AXES.index(axis) for axis in axes]] / teacher
    return np.argsort(np.round(np.abs(np.log(shares)).sum(1), 9), kind="stable")


def _none_near(
    named: PartialArchitecture, nearest: Architecture, amount: int, space: SearchSpace
) -> InputError:
    budget = space.budget
    return InputError(
        "An architecture by hand has to lie within the budget's tolerance",
        f"--try {named.text} comes no nearer than {amount:,} {budget.of.unit} ({nearest.label}), and "
        f"{budget} was asked",
        f"Try {_nearest_sizes(named, space)}, or take {_as_budget(amount, budget)} as --budget",
    )


def _as_budget(amount: int, budget: Budget) -> str:
    """An amount as people type it, exactly if three digits would leave the band around it."""
    text = format_amount(amount, budget.of)
    return text if budget.tolerance >= 0.005 else str(amount)


def _nearest_sizes(named: PartialArchitecture, space: SearchSpace) -> str:
    """The sizes of the named axes in the space that are nearest to those named."""
    wanted = np.array(list(named.sizes.values()))
    sizes = space.table[:, [AXES.index(axis) for axis in named.sizes]]
    row = int(np.abs(np.log(sizes / wanted)).sum(1).argmin())
    return ",".join(f"{axis}={size}" for axis, size in zip(named.sizes, sizes[row].tolist(), strict=True))


def architecture_of_sizes(sizes: Mapping[Axis, int], axis_map: AxisMap) -> Architecture:
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
