"""The sizes that each axis may take, and the combinations that the teacher's class allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.axes.config_fields import with_sizes
from space.counting.counting import expert_groups, fewest_experts
from space.enumeration.limits import Limit, multiple_does_not_fit

Sizes = dict[Axis, NDArray[np.int64]]
Choices = dict[Axis, list[int]]
#: What programs that serve models ask of sizes: K-quants of llama.cpp pack 256 numbers of a row into a block,
#: and tensor parallelism splits heads and neurons over up to eight devices.
DEPLOYMENT: Mapping[Axis, int] = {
    **dict.fromkeys((Axis.HIDDEN, Axis.MLP, Axis.EXPERT_MLP, Axis.SHARED_MLP), 256),
    **{Axis.HEADS: 8, Axis.HEAD_DIM: 32},
}
#: The axes that model classes validate together.
_WIDTHS = (Axis.HIDDEN, Axis.KV_HEADS, Axis.HEADS)


def preferred_multiple(size: int) -> int:
    """Return the step between sizes of a hidden or MLP axis; larger steps suit hardware better."""
    return next((step for step in (128, 64, 32, 16, 8) if size >= 16 * step), 4)


def step_of(axis: Axis, axis_map: AxisMap) -> int:
    """Return the step between sizes of an axis, a multiple of what the axis map asks beside the class."""
    return math.lcm(_step_of_class(axis, axis_map), axis_map.multiples.get(axis, 1))


def _step_of_class(axis: Axis, axis_map: AxisMap) -> int:
    """Return the step that suits an axis's size and keeps coupled axes integral."""
    size = axis_map.teacher[axis]
    if axis is Axis.EXPERTS:
        groups = expert_groups(axis_map)
        return groups * _share_of(size // groups)
    if axis is Axis.HEAD_DIM:
        return 16 if size >= 64 else 4
    step = 1 if axis in (Axis.HEADS, Axis.KV_HEADS, Axis.LAYERS) else preferred_multiple(size)
    if axis_map.teacher.experts and axis in (Axis.HIDDEN, Axis.EXPERT_MLP):
        step = math.lcm(step, 8)  # grouped matrix products need rows of 16 bytes
    if axis is Axis.HEADS and Axis.KV_HEADS not in axis_map.free:
        step = _share_of(size)
    whole = math.lcm(1, *(c.factor.denominator for c in axis_map.couplings if c.of is axis))
    both = math.lcm(step, whole)
    return both if both <= size // 8 else max(step, whole) if step % whole == 0 else whole


def _share_of(size: int) -> int:
    """Return the step between numbers of experts, or of ungrouped heads, so that devices can share them."""
    return next((step for step in (8, 4, 2) if size >= 16 * step), 1)


def sizes_of(axis: Axis, axis_map: AxisMap, least: int, limit: Limit | None) -> list[int]:
    """Return the sizes that an axis may take, ascending.

    Args:
        axis: a free axis.
        axis_map: the teacher's.
        least: the fewest units, unless a limit says otherwise.
        limit: the user's limit on the axis, if any.
    """
    whole = axis_map.teacher[axis]
    if limit and limit.keep:
        return [whole]
    if limit and limit.sizes:
        return list(limit.sizes)
    lowest, highest = limit.span if limit and limit.span else (least, whole)
    if axis is Axis.EXPERTS:
        lowest = max(lowest, fewest_experts(axis_map))
    step = step_of(axis, axis_map)
    found = {*range(-(-lowest // step) * step, highest + 1, step)} | ({whole} if highest == whole else set())
    if axis is Axis.KV_HEADS:
        found = {size for size in found if whole % size == 0 and (size == whole or _split(size, axis_map))}
    return sorted(found)


def _split(kv_heads: int, axis_map: AxisMap) -> bool:
    """Whether the devices among which query heads are split can share, or repeat, their KV heads."""
    devices = axis_map.multiples.get(Axis.HEADS, 1)
    return kv_heads % devices == 0 or devices % kv_heads == 0


def grid(axis_map: AxisMap, choices: Choices, whole_groups: bool) -> Sizes:
    """Return every combination of sizes that the class allows, one array per axis, first axes slowest.

    Args:
        axis_map: the teacher's.
        choices: the sizes of each chosen axis; all others follow these or keep the teacher's size.
        whole_groups: whether query heads follow their KV heads: every group keeps all of its queries.
    """
    choices = dict(choices)
    if whole_groups:
        choices.pop(Axis.HEADS, None)
    chosen = [axis for axis in _WIDTHS if axis in choices]
    rows = itertools.product(*(choices[axis] for axis in chosen))
    widths = [
        w for row in rows if (w := _widths(axis_map, dict(zip(chosen, row, strict=True)), whole_groups))
    ]
    table = np.array([[w[axis] for axis in _WIDTHS] for w in widths], dtype=np.int64).reshape(-1, 3)
    sizes = {axis: table[:, place] for place, axis in enumerate(_WIDTHS)}
    for axis, values in choices.items():
        if axis not in _WIDTHS:
            rows_before = len(sizes[Axis.HIDDEN])
            sizes = {name: np.repeat(column, len(values)) for name, column in sizes.items()}
            sizes[axis] = np.tile(np.array(values, dtype=np.int64), rows_before)
    return complete_sizes(axis_map, sizes)


def complete_sizes(axis_map: AxisMap, sizes: Sizes) -> Sizes:
    """Add the missing axes: coupled ones follow, others keep the teacher's size."""
    rows = len(next(iter(sizes.values())))
    whole = {axis: sizes.get(axis, np.full(rows, axis_map.teacher[axis])) for axis in Axis}
    for coupling in axis_map.couplings:
        factor = coupling.factor
        whole[coupling.axis] = whole[coupling.of] * factor.numerator // factor.denominator
    return whole


def _widths(axis_map: AxisMap, chosen: dict[Axis, int], whole_groups: bool) -> Architecture | None:
    """Return the architecture with these widths; None if heads do not divide or the class rejects it."""
    teacher = axis_map.teacher
    group = teacher.heads // teacher.kv_heads if teacher.kv_heads else 1
    if whole_groups:
        chosen = chosen | {Axis.HEADS: chosen.get(Axis.KV_HEADS, teacher.kv_heads) * group}
    if any(
        chosen.get(c.of, teacher[c.of]) * c.factor.numerator % c.factor.denominator
        for c in axis_map.couplings
    ):
        return None
    sized = axis_map.complete(chosen)
    if sized.kv_heads and (sized.heads % sized.kv_heads or sized.heads // sized.kv_heads > group):
        return None
    changes = {name: sized[axis] for axis in _WIDTHS for name in axis_map.fields.get(axis, ())}
    try:
        with_sizes(axis_map.config, changes)
    except (StrictDataclassError, ValueError):
        return None
    return sized


def times_hidden(sizes: Sizes, limit: Limit, axis_map: AxisMap) -> Sizes:
    """Return the sizes repeated for each multiple of hidden that the limit allows for its axis.

    A multiple that is not an integer is rounded to the axis's step; sizes beyond the teacher's are left out.
    """
    step, largest = step_of(limit.axis, axis_map), axis_map.teacher[limit.axis]
    tables = []
    for factor in limit.times_hidden:
        whole, odd = np.divmod(sizes[Axis.HIDDEN] * factor.numerator, factor.denominator)
        nearest = np.rint((whole + odd / factor.denominator) / step).astype(np.int64) * step
        tables.append(np.where(odd == 0, whole, nearest))
        if not ((tables[-1] >= 1) & (tables[-1] <= largest)).any():
            raise multiple_does_not_fit(limit, factor, largest)
    values = np.stack(tables, axis=1).reshape(-1)
    repeated = {axis: np.repeat(column, len(tables)) for axis, column in sizes.items()} | {limit.axis: values}
    fitting = (values >= 1) & (values <= largest)
    return complete_sizes(axis_map, {axis: column[fitting] for axis, column in repeated.items()})
