"""The user's limits on axes, and the errors raised when no architecture can meet limits and budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget, format_amount
from space.counting.counting import expert_groups, fewest_experts
from space.input_error import InputError

#: Axes whose units are neurons; the budget determines the size of one of them.
NEURONS = (Axis.MLP, Axis.EXPERT_MLP, Axis.SHARED_MLP)
_FORMS = "Write --sizes hidden=2048..3584 layers=28,30,32 mlp=3x,3.5x"


@dataclass(frozen=True)
class Limit:
    """The sizes that one axis may have, given by exactly one of the last four fields."""

    axis: Axis
    text: str
    """The flag as the user typed it."""
    keep: bool = False
    """Only the teacher's size."""
    sizes: tuple[int, ...] = ()
    """Only these sizes, ascending."""
    span: tuple[int, int] | None = None
    """The sizes from the first to the second, both included, that are multiples of the axis's step."""
    times_hidden: tuple[Fraction, ...] = ()
    """Only these multiples of hidden, ascending."""

    @property
    def listed(self) -> bool:
        """Whether the limit lists every size, so that the axis is not solved for."""
        return self.span is None


Limits = Mapping[Axis, Limit]


def read_limits(keep: Sequence[str], sizes: Sequence[str]) -> Limits:
    """Parse the values of ``--keep`` and ``--sizes``.

    Raises:
        InputError: an axis is unknown or limited twice, or its sizes cannot be parsed.
    """
    found: dict[Axis, Limit] = {}
    for text in keep:
        _add(found, Limit(axis_named(text), f"--keep {text}", keep=True))
    for text in sizes:
        name, equals, values = text.partition("=")
        if not equals:
            raise InputError("--sizes takes axes with their sizes", f"{text!r} names none", _FORMS)
        _add(found, _sized(axis_named(name), values, f"--sizes {text}"))
    return found


def _add(found: dict[Axis, Limit], limit: Limit) -> None:
    if limit.axis in found:
        both = f"{found[limit.axis].text} and {limit.text}"
        raise InputError("An axis can be limited once", f"{both} were given", "Leave one out")
    found[limit.axis] = limit


def axis_named(text: str) -> Axis:
    """Return the axis with a name that the user typed.

    Raises:
        InputError: no axis has the name; the message suggests the nearest.
    """
    name = text.strip().lower().replace("-", "_")
    if name in set(Axis):
        return Axis(name)
    near = get_close_matches(name, list(Axis), n=1)
    raise InputError(
        f"Axes are {', '.join(Axis)}",
        f"{text!r} is none of them",
        f"Did you mean {str(near[0])!r}" if near else "Choose from these",
    )


def _sized(axis: Axis, values: str, text: str) -> Limit:
    rule = "Sizes are a range 2048..3584, whole numbers 28,30,32, or multiples of hidden 3x,3.5x"
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", values):
        span = int(match[1]), int(match[2])
        if span[0] > span[1]:
            raise InputError("A range runs from small to large", f"{text} does not", _FORMS)
        return Limit(axis, text, span=span)
    parts = [part.strip().lower() for part in values.split(",")]
    if all(re.fullmatch(r"\d+", part) for part in parts):
        return Limit(axis, text, sizes=tuple(sorted({int(part) for part in parts})))
    if not all(re.fullmatch(r"(\d+(\.\d+)?|\.\d+)x", part) for part in parts):
        raise InputError(rule, f"{text} is neither", _FORMS)
    if axis not in NEURONS:
        names = ", ".join(NEURONS)
        raise InputError(f"Multiples of hidden are for {names}", f"{text} was given", _FORMS)
    return Limit(axis, text, times_hidden=tuple(sorted({Fraction(part[:-1]) for part in parts})))


def check_limits(limits: Limits, axis_map: AxisMap) -> None:
    """Check that a teacher can meet the limits.

    Raises:
        InputError: the teacher lacks an axis, it follows another or is not cut, or a size is not allowed.
    """
    for limit in limits.values():
        _check_axis(limit, axis_map)
        _check_sizes(limit, axis_map)


def _check_axis(limit: Limit, axis_map: AxisMap) -> None:
    axis, kind = limit.axis, axis_map.config.model_type
    if axis not in axis_map.axes:
        raise InputError(
            f"The axes of this teacher are {', '.join(axis_map.axes)}",
            f"{limit.text} was given for a teacher of type {kind!r}",
            f"Leave {axis} out",
        )
    for coupling in axis_map.couplings:
        if coupling.axis is axis:
            raise InputError(
                f"In the type {kind!r}, {axis} follows {coupling.of}",
                f"{limit.text} was given",
                f"Limit {coupling.of} instead",
            )
    if axis in axis_map.refused and not limit.keep:
        raise InputError(
            f"In the type {kind!r}, {axis} stays as it is: {axis_map.refused[axis]}",
            f"{limit.text} was given",
            f"Leave {axis} out",
        )


def _check_sizes(limit: Limit, axis_map: AxisMap) -> None:
    whole, rule = axis_map.teacher[limit.axis], "Sizes have to lie within the teacher's"
    for size in (*limit.sizes, *(limit.span or ())):
        if not 1 <= size <= whole:
            values = f"{limit.text} names {size}, and the teacher has {whole}"
            raise InputError(rule, values, f"Name sizes from 1 to {whole}")
    if limit.axis is Axis.EXPERTS:
        least, groups = fewest_experts(axis_map), expert_groups(axis_map)
        for size in limit.sizes:
            if size < least or size % groups:
                raise InputError(
                    f"Routing needs at least {least} experts"
                    + (f", and as many in each of the {groups} groups" if groups > 1 else ""),
                    f"{limit.text} names {size}",
                    f"Name sizes from {least} to {whole}" + (f" that {groups} divides" if groups > 1 else ""),
                )


def at_or_above_the_teacher(budget: Budget, whole: int) -> InputError:
    """Return the error for a budget that leaves nothing to cut."""
    most = format_amount(0.9 * whole / (1 + budget.tolerance), budget.of)
    return InputError(
        "The budget, tolerance included, has to lie below the teacher's size",
        f"{budget} was asked of a teacher of {whole:,} {budget.of.unit}",
        f"Ask for less (up to {most}), or name a larger teacher with --model",
    )


def not_measurable(axis_map: AxisMap, budget: Budget) -> InputError:
    """Return the error for a budget of something that the teacher does not have."""
    return InputError(
        "The teacher has to have what the budget measures",
        f"a teacher of type {axis_map.config.model_type!r} has no {budget.of.unit}",
        "Choose another --budget-of",
    )


def nothing_near(
    budget: Budget, whole: int, nearest: tuple[Sequence[int], Sequence[int]], helpful: Sequence[str]
) -> InputError:
    """Return the error for a budget with no architecture within its tolerance.

    Args:
        budget: the budget.
        whole: the teacher's amount.
        nearest: the nearest feasible amounts below and above; each may be empty.
        helpful: the user's limits of which leaving out any one would allow some architecture.
    """
    found = " and ".join(str(amount) for side in nearest for amount in side)
    forbidden = f"; {' or '.join(helpful)} forbids them" if helpful else ""
    ways = ["Take one of these as --budget" if found else "", f"leave {helpful[0]} out" if helpful else ""]
    ways += ["widen --tolerance", "or name a teacher nearer in size with --model"]
    remedy = ", ".join(way for way in ways if way)
    return InputError(
        "At least one architecture has to lie within the budget's tolerance",
        f"none lies within {budget} for a teacher of {whole:,}{forbidden}; the nearest are {found or 'none'}",
        remedy[0].upper() + remedy[1:],
    )


def no_size_fits(limit: Limit, step: int) -> InputError:
    """Return the error for a range that contains no allowed size."""
    return InputError(
        f"Sizes of {limit.axis} are multiples of {step}",
        f"{limit.text} holds none",
        f"Widen the range, or name sizes one by one: --sizes {limit.axis}=A,B,C",
    )


def not_together(limit: Limit, size: int, axis_map: AxisMap) -> InputError:
    """Return the error for a size that the class rejects with every size of the other axes."""
    return InputError(
        f"The class {type(axis_map.config).__name__} has to allow every size",
        f"{limit.text} names {size}, which goes with none of the sizes of the other axes",
        f"Leave {size} out, or widen the limits of the other axes",
    )


def multiple_does_not_fit(limit: Limit, factor: Fraction, largest: int) -> InputError:
    """Return the error for a multiple of hidden that is out of range for every hidden size."""
    return InputError(
        "Sizes have to lie within the teacher's",
        f"{limit.text} names {float(factor):g}x, and the teacher has {largest}",
        "Name a smaller multiple" if factor > 1 else "Name another multiple",
    )
