"""Architectures that do not come from the search: the baselines, and those that a user names with ``--try``.

Sizes that the user does not name keep the teacher's, except on the axis that is solved for the budget. If
that architecture misses the budget, the one most like the teacher within the tolerance replaces it.
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
#: Without KV heads, whose steps are too coarse to compare; among equals, more KV heads come first.
_WIDTHS = (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.EXPERTS, Axis.EXPERT_MLP, Axis.SHARED_MLP, Axis.HEAD_DIM)


def baselines(space: SearchSpace, teacher: Architecture) -> dict[str, Architecture]:
    """Return the hand-made architectures within the budget, by name.

    Those that the space does not contain are left out, and so are duplicates of earlier ones.

    - ``uniform``: all widths, experts included, shrunk alike; no layer removed.
    - ``mlp-heads``: the neurons of MLPs and experts, and heads, shrunk alike; all else kept.
    - ``depth``: layers removed; all widths kept, except that the solved axis adjusts to the budget.
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
    """Return (n,) whether all of these axes have the teacher's size."""
    kept = np.ones(len(space), dtype=bool)
    for axis in axes:
        kept &= space.column(axis) == teacher[axis]
    return kept


def _most_even(
    space: SearchSpace, teacher: Architecture, axes: Sequence[Axis], among: NDArray[np.bool_]
) -> int | None:
    """Return the row in which the axes shrink most evenly: the one with the smallest range of log shares.

    The range is rounded, so ties are the same on every machine; they go to the most KV heads, then heads.
    """
    if not among.any() or not axes:
        return None
    shares = np.log([space.column(axis) / teacher[axis] for axis in axes])
    unevenness = np.round(shares.max(0) - shares.min(0), 9)
    order = np.lexsort((-space.column(Axis.HEADS), -space.column(Axis.KV_HEADS), unevenness, ~among))
    return int(order[0])


def _deepest(space: SearchSpace, teacher: Architecture) -> int | None:
    """Return the row with all widths and the most of the solved axis, or the most layers without one."""
    fixed = [axis for axis in space.free_axes if axis is not Axis.LAYERS]
    shallow = _kept(space, teacher, fixed) & (space.column(Axis.LAYERS) < teacher.layers)
    if not shallow.any():
        return None
    most = space.column(space.solved or Axis.LAYERS)
    return int(np.where(shallow, most, -1).argmax())


Table = NDArray[np.int64]
"""(n, axes) sizes, with the axes in the order of ``Axis``."""
_FORMS = "Write --try hidden=3072,mlp=9216"


@dataclass(frozen=True)
class PartialArchitecture:
    """An architecture of which the user names some sizes."""

    text: str
    """As the user typed it."""
    sizes: Mapping[Axis, int]

    @property
    def limits(self) -> Limits:
        """Limits that allow only the named size of each named axis."""
        return {axis: Limit(axis, f"--try {axis}={size}", sizes=(size,)) for axis, size in self.sizes.items()}


def parse_architecture(text: str) -> PartialArchitecture:
    """Parse ``hidden=3072,mlp=9216``.

    Raises:
        InputError: an axis is unknown or named twice, or a size is not a whole number.
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
    """Return the architectures within the budget with the named sizes, those most like the teacher first.

    Args:
        named: the sizes that the user names.
        axis_map: the teacher's.
        space: the search space of the budget.
        limits: the user's limits on that space; named sizes override them.

    Raises:
        InputError: the class does not allow a size, or no architecture with these sizes lies near the
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
    """Return (0 or 1, axes) the completion with the teacher's sizes, except on the solved axis."""
    limits = {axis: Limit(axis, f"--keep {axis}", keep=True) for axis in axis_map.free}
    if (solved := space.solved) is not None:
        limits[solved] = Limit(solved, f"--sizes {solved}", span=(1, axis_map.teacher[solved]))
    try:
        return near_budget(axis_map, space.budget, limits | dict(named.limits))
    except InputError:  # not allowed beside the teacher's other sizes; smaller ones may be
        return np.empty((0, len(AXES)), dtype=np.int64)


def _changes(table: Table, named: PartialArchitecture, axis_map: AxisMap) -> NDArray[np.intp]:
    """Order rows by the summed distances of log sizes from the teacher's, over the axes not named."""
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
    """Format an amount as users type it; in full if three digits could leave the tolerance."""
    text = format_amount(amount, budget.of)
    return text if budget.tolerance >= 0.005 else str(amount)


def _nearest_sizes(named: PartialArchitecture, space: SearchSpace) -> str:
    """Format the sizes of the named axes, within the space, that are nearest to the named ones."""
    wanted = np.array(list(named.sizes.values()))
    sizes = space.table[:, [AXES.index(axis) for axis in named.sizes]]
    row = int(np.abs(np.log(sizes / wanted)).sum(1).argmin())
    return ",".join(f"{axis}={size}" for axis, size in zip(named.sizes, sizes[row].tolist(), strict=True))


def architecture_of_sizes(sizes: Mapping[Axis, int], axis_map: AxisMap) -> Architecture:
    """Return the architecture with these sizes, whatever the budget; other axes keep the teacher's size.

    Query heads follow their KV heads unless ``sizes`` has them.

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
