"""The intermediate sizes when a teacher is ranked and pruned in several rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import BUILD_ERRORS, AxisMap, build
from space.cutting.extraction import student_config
from space.enumeration.choices import step_of

_HEADS = (Axis.HEADS, Axis.KV_HEADS)


def architectures_between(axis_map: AxisMap, target: Architecture, rounds: int) -> list[Architecture]:
    """Return the sizes after each round: every axis loses about (teacher − target) / rounds of its units.

    Intermediate sizes are rounded up to the next size that students may have; no axis grows again.

    Args:
        axis_map: the teacher's.
        target: the sizes after the last round.
        rounds: the number of rounds, at least one.
    """
    found, before = [], axis_map.teacher
    for number in range(1, rounds):
        before = _next(axis_map, before, target, Fraction(number, rounds))
        found.append(before)
    return [*found, target]


def _next(axis_map: AxisMap, before: Architecture, target: Architecture, share: Fraction) -> Architecture:
    """Return the smallest sizes that the class allows after at most ``share`` of the whole cut."""

    def least(axis: Axis) -> int:
        """Return the fewest units that an axis may have."""
        whole, step = axis_map.teacher[axis], step_of(axis, axis_map)
        wanted = -((share * (whole - target[axis]) - whole) // step) * step
        return max(target[axis], min(wanted, before[axis]))

    plain = {axis: least(axis) for axis in axis_map.free if axis not in (Axis.HIDDEN, *_HEADS)}
    for kv_heads in _groups(axis_map, least(Axis.KV_HEADS), before):
        heads = _heads(axis_map, least(Axis.HEADS), kv_heads, before, target)
        for hidden in _widths(axis_map, least(Axis.HIDDEN), before):
            chosen = {Axis.HIDDEN: hidden, Axis.HEADS: heads, Axis.KV_HEADS: kv_heads}
            sizes = plain | {axis: size for axis, size in chosen.items() if axis in axis_map.free}
            if _coupled_sizes_are_whole(axis_map, sizes):
                found = axis_map.complete(sizes)
                if _lies_between(found, before, target) and _allowed(axis_map, found):
                    return found
    return replace(before, layers=plain.get(Axis.LAYERS, before.layers))


def _groups(axis_map: AxisMap, least: int, before: Architecture) -> Iterator[int]:
    """Yield numbers of KV heads, ascending: the divisors of the teacher's number."""
    for size in range(max(1, least), before.kv_heads + 1):
        if axis_map.teacher.kv_heads % size == 0:
            yield size
    if not before.kv_heads or axis_map.teacher.kv_heads % before.kv_heads:
        yield before.kv_heads


def _heads(axis_map: AxisMap, least: int, kv_heads: int, before: Architecture, target: Architecture) -> int:
    """Return the fewest heads, equal in every group: per group at most as before, at least as in the end."""
    if Axis.KV_HEADS in {coupling.axis for coupling in axis_map.couplings} or not kv_heads:
        return least
    each = max(-(-least // kv_heads), target.heads // target.kv_heads)
    return kv_heads * min(each, before.heads // before.kv_heads)


def _widths(axis_map: AxisMap, least: int, before: Architecture) -> Iterator[int]:
    yield from range(least, before.hidden, step_of(Axis.HIDDEN, axis_map))
    yield before.hidden


def _coupled_sizes_are_whole(axis_map: AxisMap, sizes: dict[Axis, int]) -> bool:
    """Return whether every coupled axis has an integral size."""
    of = {axis: sizes.get(axis, axis_map.teacher[axis]) for axis in Axis}
    return all((of[c.of] * c.factor).denominator == 1 for c in axis_map.couplings if c.of in sizes)


def _lies_between(found: Architecture, before: Architecture, target: Architecture) -> bool:
    each = [one.heads // one.kv_heads if one.kv_heads else 0 for one in (before, found, target)]
    return (
        all(before[axis] >= found[axis] >= target[axis] for axis in Axis)
        and each[0] >= each[1] >= each[2]
        and (not found.kv_heads or found.heads % found.kv_heads == 0)
    )


def _allowed(axis_map: AxisMap, found: Architecture) -> bool:
    """Return whether the class builds with these widths, at the teacher's depth."""
    layers = axis_map.teacher.layers
    try:
        build(student_config(axis_map, replace(found, layers=layers), range(layers)))
    except BUILD_ERRORS:
        return False
    return True
