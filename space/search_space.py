"""Every architecture near a budget: enumerated, counted exactly, none built.

The MLP size is solved from the other sizes, so that each candidate lies within the tolerance.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray

from space.architecture import Architecture, Axis
from space.axis_map import AxisMap
from space.budget import Budget, spoken
from space.counting import Polynomial, parameter_polynomial
from space.input_error import InputError

#: The axes that a sampler chooses; the MLP follows from them.
FREE_AXES = (Axis.HIDDEN, Axis.HEADS, Axis.KV_HEADS, Axis.LAYERS)
Sizes = dict[Axis, NDArray[np.int64]]
Share = TypeVar("Share", float, NDArray[np.float64])


@dataclass(frozen=True)
class SearchSpace:
    """All architectures within the tolerance of a budget."""

    budget: Budget
    architectures: tuple[Architecture, ...]
    """In a fixed order; one MLP size for each choice of the other sizes."""
    parameters: tuple[int, ...]
    """Exact, beside ``architectures``."""

    @cached_property
    def parameters_of(self) -> dict[Architecture, int]:
        """The exact number of parameters of each architecture."""
        return dict(zip(self.architectures, self.parameters, strict=True))

    @cached_property
    def by_free_sizes(self) -> dict[tuple[int, ...], Architecture]:
        """The architecture for each choice of ``FREE_AXES``."""
        return {tuple(a[axis] for axis in FREE_AXES): a for a in self.architectures}

    def values(self, axis: Axis) -> list[int]:
        """The sizes of an axis that occur, ascending."""
        return sorted({architecture[axis] for architecture in self.architectures})


def divisor(size: int) -> int:
    """What the sizes of a hidden or MLP axis are multiples of: kinder to hardware the larger it is."""
    return next((step for step in (128, 64, 32, 16, 8) if size >= 16 * step), 4)


def floors(teacher: Architecture, share: float) -> dict[Axis, int]:
    """How far each axis may shrink when ``share`` of the parameters is to remain.

    No axis alone has to carry the whole cut, so each stays above 0.8 of the share and at most half;
    the MLP, which is solved for, may go to half of that.
    """
    return {axis: max(1, math.ceil(part * teacher[axis])) for axis, part in _least(share).items()}


def _least(share: Share) -> dict[Axis, Share]:
    """The smallest share of each axis that goes with a share of the parameters."""
    least = np.minimum(0.5, 0.8 * share)
    return dict.fromkeys(Axis, least) | {Axis.MLP: least / 2}


def enumerate_space(axis_map: AxisMap, budget: Budget) -> SearchSpace:
    """Find every architecture within the budget's tolerance.

    Raises:
        InputError: the budget is not below the teacher's size, or no architecture lies within it.
    """
    teacher, count = axis_map.teacher, parameter_polynomial(axis_map)
    whole = count.of(teacher)
    if budget.highest >= whole:
        most = spoken(0.9 * whole / (1 + budget.tolerance))
        raise InputError(
            "The budget, tolerance included, has to lie below the teacher's size",
            f"{budget} was asked of a teacher of {whole:,} parameters",
            f"Ask for less (up to {most}), or name a larger teacher with --model",
        )
    least = floors(teacher, budget.parameters / whole)
    sizes = _grid(axis_map, least)
    constant, slope = count.split(Axis.MLP)
    step = divisor(teacher.mlp)
    lowest, highest = -(-least[Axis.MLP] // step) * step, teacher.mlp // step * step
    steps = (budget.parameters - constant.at(sizes)) / slope.at(sizes) / step

    def solved(whole_number: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Sizes:
        return sizes | {Axis.MLP: np.clip(whole_number(steps).astype(np.int64) * step, lowest, highest)}

    sizes = solved(np.rint)
    parameters = count.at(sizes)
    near = (parameters >= budget.lowest) & (parameters <= budget.highest)
    if not near.any():
        raise _nothing_near(budget, teacher, count, (solved(np.floor), solved(np.ceil)))
    rows = np.stack([sizes[axis] for axis in Axis], axis=1)[near]
    found = tuple(
        Architecture(**{axis.value: int(size) for axis, size in zip(Axis, row, strict=True)}) for row in rows
    )
    return SearchSpace(budget, found, tuple(int(n) for n in parameters[near]))


def _grid(axis_map: AxisMap, least: dict[Axis, int]) -> Sizes:
    """Every choice of the free axes that the class allows, one array an axis."""
    teacher = axis_map.teacher
    group = teacher.heads // teacher.kv_heads
    kv_choices = [k for k in range(1, teacher.kv_heads + 1) if teacher.kv_heads % k == 0]
    rows = [
        (hidden, kv_heads * each, kv_heads, layers)
        for hidden in _multiples(teacher.hidden, least[Axis.HIDDEN])
        for kv_heads in kv_choices
        for each in range(1, group + 1)
        if kv_heads * each >= least[Axis.HEADS] and kv_heads >= least[Axis.KV_HEADS]
        if _allowed(axis_map, hidden, kv_heads * each, kv_heads)
        for layers in range(least[Axis.LAYERS], teacher.layers + 1)
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, len(FREE_AXES))
    return {axis: table[:, place] for place, axis in enumerate(FREE_AXES)}


def _multiples(size: int, least: int) -> Sequence[int]:
    """Multiples of the divisor from ``least`` to ``size``, and ``size`` itself."""
    step = divisor(size)
    return [*range(-(-least // step) * step, size, step), size]


def _allowed(axis_map: AxisMap, hidden: int, heads: int, kv_heads: int) -> bool:
    """Whether the class's own rules accept these sizes together.

    The rules are validators of the config's class; to run them on a copy takes a quarter of the time
    of making a config.
    """
    names, sized = axis_map.family.fields, copy.copy(axis_map.config)
    try:
        for axis, size in ((Axis.HIDDEN, hidden), (Axis.HEADS, heads), (Axis.KV_HEADS, kv_heads)):
            setattr(sized, names[axis], size)
        sized.validate()
    except StrictDataclassError:
        return False
    return True


def _nothing_near(
    budget: Budget, teacher: Architecture, count: Polynomial, around: tuple[Sizes, Sizes]
) -> InputError:
    """A refusal that names the nearest budgets on both sides that would do, by their own limits.

    Args:
        budget: what was asked.
        teacher: its sizes.
        count: parameters of an architecture.
        around: for each choice of the free axes, the MLP sizes next below and above what it would take.
    """
    whole = count.of(teacher)
    counts: set[int] = set()
    for sizes in around:
        parameters = count.at(sizes)
        works = parameters * (1 + budget.tolerance) < whole
        for axis, part in _least(parameters / whole).items():
            works &= sizes[axis] >= part * teacher[axis]
        counts.update(parameters[works].tolist())
    below, above = (sorted(n for n in counts if (n > budget.parameters) is side) for side in (False, True))
    nearest = " and ".join(map(str, (*below[-1:], *above[:1]))) or "none"
    return InputError(
        "At least one architecture has to lie within the budget's tolerance",
        f"none lies within {budget} for a teacher of {whole:,} parameters; the nearest are {nearest}",
        "Take one of these as --budget, widen --tolerance, or name a teacher nearer in size with --model",
    )
