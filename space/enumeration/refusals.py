"""What a user reads when no architecture can meet a request: which rule forbids it, and what would do."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from space.axes.axis_map import AxisMap
from space.counting.budget import Budget, spoken
from space.enumeration.limits import Limit
from space.input_error import InputError


def at_or_above_the_teacher(budget: Budget, whole: int) -> InputError:
    """A budget that leaves nothing to cut."""
    most = spoken(0.9 * whole / (1 + budget.tolerance), budget.of)
    return InputError(
        "The budget, tolerance included, has to lie below the teacher's size",
        f"{budget} was asked of a teacher of {whole:,} {budget.of.unit}",
        f"Ask for less (up to {most}), or name a larger teacher with --model",
    )


def not_measurable(axis_map: AxisMap, budget: Budget) -> InputError:
    """A budget of something that the teacher has none of."""
    return InputError(
        "The teacher has to have what the budget measures",
        f"a teacher of type {axis_map.config.model_type!r} has no {budget.of.unit}",
        "Choose another --budget-of",
    )


def nothing_near(
    budget: Budget, whole: int, nearest: tuple[Sequence[int], Sequence[int]], helpful: Sequence[str]
) -> InputError:
    """A budget with no architecture within its tolerance.

    Args:
        budget: what was asked.
        whole: the teacher's amount.
        nearest: amounts below and above that would do; each may be empty.
        helpful: limits of the user without any one of which there would be architectures.
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
    """A range without any size that may be taken."""
    return InputError(
        f"Sizes of {limit.axis} are multiples of {step}",
        f"{limit.text} holds none",
        f"Widen the range, or name sizes one by one: --sizes {limit.axis}=A,B,C",
    )


def not_together(limit: Limit, size: int, axis_map: AxisMap) -> InputError:
    """A size that the class refuses with every size that the other axes may take."""
    return InputError(
        f"The class {type(axis_map.config).__name__} has to allow every size",
        f"{limit.text} names {size}, which goes with none of the sizes of the other axes",
        f"Leave {size} out, or widen the limits of the other axes",
    )


def multiple_does_not_fit(limit: Limit, factor: Fraction, largest: int) -> InputError:
    """A multiple of hidden that is more than the teacher has, or nothing, whatever hidden is."""
    return InputError(
        "Sizes have to lie within the teacher's",
        f"{limit.text} names {float(factor):g}x, and the teacher has {largest}",
        "Name a smaller multiple" if factor > 1 else "Name another multiple",
    )
