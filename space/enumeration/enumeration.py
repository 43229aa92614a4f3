"""Finding every architecture within the tolerance of a budget.

All free axes but one are enumerated. The remaining one, the neurons that hold most of what the budget
counts, is solved for. Axes that the budget does not depend on keep the teacher's size unless the user asks
for other sizes: a budget cuts only what it measures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.axes.polynomial import Polynomial
from space.counting.budget import Budget
from space.counting.counting import budget_polynomial, parameter_polynomial
from space.enumeration.choices import Choices, Sizes, complete_sizes, grid, sizes_of, step_of, times_hidden
from space.enumeration.limits import (
    NEURONS,
    Limits,
    at_or_above_the_teacher,
    check_limits,
    no_size_fits,
    not_measurable,
    not_together,
    nothing_near,
)
from space.enumeration.search_space import AXES, SearchSpace

Reals = NDArray[np.float64]
Share = TypeVar("Share", float, Reals)
#: At most so many combinations are tried and architectures kept; beyond that, steps between sizes grow.
_CHOICES, _ARCHITECTURES = 1_000_000, 200_000
#: Axes with at most ``_FEW`` sizes keep their steps; other steps grow by at most about this factor.
_FEW, _COARSEST = 4, 64
_WIDTHS = (Axis.HIDDEN, Axis.HEADS, Axis.KV_HEADS)


def smallest_sizes(teacher: Architecture, share: float, solved: Axis | None = Axis.MLP) -> dict[Axis, int]:
    """Return how far each axis may shrink when ``share`` of what the budget counts is to remain.

    No single axis has to carry the whole cut, so each keeps at least 0.8 times the share, or half of its
    units where that is less. The axis that is solved for may shrink to half of that.
    """
    return {
        axis: max(1, math.ceil(part * teacher[axis])) for axis, part in smallest_shares(share, solved).items()
    }


def smallest_shares(share: Share, solved: Axis | None) -> dict[Axis, Share]:
    """Return the smallest share of each axis to keep when a share of what the budget counts is to remain."""
    part: Share = np.minimum(0.5, 0.8 * share)
    return {axis: part / 2 if axis is solved else part for axis in Axis}


def enumerate_space(axis_map: AxisMap, budget: Budget, limits: Limits | None = None) -> SearchSpace:
    """Find every architecture within the budget's tolerance and the user's limits.

    Raises:
        InputError: the budget is not below the teacher's size, no architecture lies within the
            tolerance, or a limit cannot be met.
    """
    return _enumeration(axis_map, budget, limits or {}).space()


def near_budget(axis_map: AxisMap, budget: Budget, limits: Limits) -> NDArray[np.int64]:
    """Like ``enumerate_space``, but return a plain (n, axes) table, which may be empty.

    Raises:
        InputError: a limit cannot be met, whatever the budget.
    """
    sizes, _ = _enumeration(axis_map, budget, limits).near()
    return np.stack([sizes[axis] for axis in AXES], axis=1)


def nearest_to_budget(axis_map: AxisMap, budget: Budget, limits: Limits) -> tuple[Architecture, int]:
    """Return the architecture within the limits that comes nearest to the budget, and its amount.

    Raises:
        InputError: a limit cannot be met, whatever the budget.
    """
    return _enumeration(axis_map, budget, limits).nearest()


def _enumeration(axis_map: AxisMap, budget: Budget, limits: Limits) -> _Enumeration:
    check_limits(limits, axis_map)
    count = budget_polynomial(axis_map, budget)
    whole = count.of(axis_map.teacher)
    if not whole:
        raise not_measurable(axis_map, budget)
    if budget.highest >= whole:
        raise at_or_above_the_teacher(budget, whole)
    return _Enumeration(axis_map, budget, limits, count, whole)


@dataclass(frozen=True)
class _Enumeration:
    """One request for a budget and limits, with the quantities derived from it."""

    axis_map: AxisMap
    budget: Budget
    limits: Limits
    count: Polynomial
    """The count of what the budget measures."""
    whole: int
    """The teacher's count."""

    def space(self) -> SearchSpace:
        """Enumerate the search space; raise InputError if it is empty."""
        sizes, _ = self.near()
        if not len(sizes[Axis.LAYERS]):
            helpful = [limit.text for axis, limit in self.limits.items() if self._without(axis).finds()]
            raise nothing_near(self.budget, self.whole, self._nearest(), helpful)
        table = np.stack([sizes[axis] for axis in AXES], axis=1)
        _, first = np.unique(table, axis=0, return_index=True)
        table = table[np.sort(first)]
        columns = {axis: table[:, place] for place, axis in enumerate(AXES)}
        free = tuple(a for a in self.axis_map.free if a is not self.solved and not self._follows(a))
        parameters = parameter_polynomial(self.axis_map)
        return SearchSpace(self.budget, free, self.solved, table, parameters.at(columns), parameters)

    def finds(self) -> bool:
        """Return whether any architecture lies within the tolerance."""
        return bool(len(self.near()[0][Axis.LAYERS]))

    def nearest(self) -> tuple[Architecture, int]:
        """Return the architecture that comes nearest to the budget, and its amount."""
        sizes = self._solved(self._grid(self._choices(self.near()[1])), np.rint)
        amounts = self.count.at(sizes)
        row = int(np.abs(amounts - self.budget.amount).argmin())
        return Architecture(*(int(sizes[axis][row]) for axis in AXES)), int(amounts[row])

    def near(self) -> tuple[Sizes, int]:
        """Return the sizes within the tolerance, and the factor by which steps grew to limit their number."""
        for stride in itertools.count(1):
            choices = self._choices(stride)
            last = all(len(values) <= _FEW for values in choices.values()) or stride > _COARSEST
            if math.prod(map(len, choices.values())) <= _CHOICES or last:
                sizes = self._within(choices)
                if stride > 1:
                    sizes = self._with_baselines(sizes, choices)
                if len(sizes[Axis.LAYERS]) <= _ARCHITECTURES or last:
                    return sizes, stride
        raise AssertionError("steps grow until little is left")

    def _with_baselines(self, sizes: Sizes, choices: Choices) -> Sizes:
        """Add what a person would try and larger steps may skip: all widths at full size, or all layers."""
        fine, teacher = self._choices(1), self.axis_map.teacher
        depth = {axis: values if axis is Axis.LAYERS else [teacher[axis]] for axis, values in fine.items()}
        width = {axis: fine[axis] if axis in _WIDTHS else values for axis, values in choices.items()}
        width |= {Axis.LAYERS: [teacher.layers]} if Axis.LAYERS in width else {}
        tables = [sizes, self._within(depth), self._within(width)]
        return {axis: np.concatenate([table[axis] for table in tables]) for axis in Axis}

    def _within(self, choices: Choices) -> Sizes:
        """Return the combinations that meet the budget, each with the best size of the solved axis."""
        sizes = self._solved(self._grid(choices), np.rint)
        amounts = self.count.at(sizes)
        near = (amounts >= self.budget.lowest) & (amounts <= self.budget.highest)
        return {axis: column[near] for axis, column in sizes.items()}

    @cached_property
    def bound(self) -> Polynomial:
        """The count with every coupled axis replaced by the axis that it follows."""
        count = self.count
        for coupling in reversed(self.axis_map.couplings):
            count = count.replaced(coupling.axis, Polynomial.variable(coupling.of) * coupling.factor)
        return count

    @cached_property
    def solved(self) -> Axis | None:
        """The neuron axis with the largest part of the count, among those without listed sizes."""
        teacher = self.axis_map.teacher
        open_axes = [
            axis
            for axis in NEURONS
            if axis in self.axis_map.free
            and not (axis in self.limits and self.limits[axis].listed)
            and self.bound.depends_on(axis)
        ]
        return max(
            open_axes, key=lambda axis: self.bound.split(axis)[1].of(teacher) * teacher[axis], default=None
        )

    @cached_property
    def least(self) -> dict[Axis, int]:
        """The fewest units of each axis that the user does not limit."""
        return smallest_sizes(self.axis_map.teacher, self.budget.amount / self.whole, self.solved)

    def _follows(self, axis: Axis) -> bool:
        """Return whether query heads follow their KV heads: the budget and limits do not concern them."""
        return (
            axis is Axis.HEADS
            and axis not in self.limits
            and not self.bound.depends_on(axis)
            and Axis.KV_HEADS in self.axis_map.free
        )

    def _choices(self, stride: int) -> Choices:
        """Return the sizes of every enumerated axis, thinned to steps ``stride`` times the usual."""
        choices: Choices = {}
        for axis in self.axis_map.free:
            limit = self.limits.get(axis)
            if axis is self.solved or (limit and limit.times_hidden) or self._follows(axis):
                continue
            if limit is None and not self.bound.depends_on(axis):
                choices[axis] = [self.axis_map.teacher[axis]]
                continue
            sizes = sizes_of(axis, self.axis_map, self.least[axis], limit)
            if not sizes:
                raise no_size_fits(self.limits[axis], step_of(axis, self.axis_map))
            thin = stride if len(sizes) > _FEW and not (limit and limit.listed) else 1
            choices[axis] = sizes[::-1][::thin][::-1]
        return choices

    def _grid(self, choices: Choices) -> Sizes:
        whole_groups = self._follows(Axis.HEADS)
        sizes = grid(self.axis_map, choices, whole_groups)
        for axis, limit in self.limits.items():
            if missing := set(limit.sizes) - set(np.unique(sizes[axis]).tolist()):
                raise not_together(limit, min(missing), self.axis_map)
            if limit.times_hidden:
                sizes = times_hidden(sizes, limit, self.axis_map)
        return sizes

    def _solved(self, sizes: Sizes, whole_number: Callable[[Reals], Reals]) -> Sizes:
        """Add the solved axis, at the size closest to what the budget leaves for it, as rounded."""
        axis, axis_map = self.solved, self.axis_map
        if axis is None:
            return sizes
        step, limit = step_of(axis, axis_map), self.limits.get(axis)
        low, high = limit.span if limit and limit.span else (self.least[axis], axis_map.teacher[axis])
        lowest, highest = -(-low // step) * step, high // step * step
        if lowest > highest:
            if limit:
                raise no_size_fits(limit, step)
            lowest = highest = high  # the teacher has less than one step: it keeps its size
        constant, slope = self.bound.split(axis)
        steps = (self.budget.amount - constant.at(sizes)) / slope.at(sizes) / step
        solved = np.clip(whole_number(steps).astype(np.int64) * step, lowest, highest)
        return complete_sizes(axis_map, sizes | {axis: solved})

    def _nearest(self) -> tuple[list[int], list[int]]:
        """Return the nearest feasible amounts below and above the budget; each list may be empty."""
        amounts: set[int] = set()
        choices = self._choices(self.near()[1])
        for whole_number in (np.floor, np.ceil):
            sizes = self._solved(self._grid(choices), whole_number)
            counts = self.count.at(sizes)
            works = counts * (1 + self.budget.tolerance) < self.whole
            for axis, part in smallest_shares(counts / self.whole, self.solved).items():
                if axis not in self.limits:
                    works &= sizes[axis] >= part * self.axis_map.teacher[axis]
            amounts.update(counts[works].tolist())
        below, above = (
            sorted(n for n in amounts if (n > self.budget.amount) is side) for side in (False, True)
        )
        return below[-1:], above[:1]

    def _without(self, axis: Axis) -> _Enumeration:
        others = {other: limit for other, limit in self.limits.items() if other is not axis}
        return replace(self, limits=others)
