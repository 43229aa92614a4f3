"""Which of several teachers at hand a budget is cut from: the smallest that is larger than the budget.

The nearer in size the teacher, the better the student (arXiv 2407.14679, section 4.1, practice 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search.settings.phases import Phase, Training
from space.counting.budget import Budget, spoken
from space.input_error import InputError


@dataclass(frozen=True)
class AtHand:
    """A teacher that could be taken."""

    training: Training
    amount: int
    """What it has of what the budget measures."""

    @property
    def phase(self) -> Phase:
        """The checkpoint that would be cut."""
        return self.training.phases[-1]


def nearest(teachers: Sequence[AtHand], budget: Budget) -> AtHand:
    """The smallest of the teachers above the budget's band; of equal ones the first.

    Raises:
        InputError: none is above it.
    """
    above = [one for one in teachers if one.amount > budget.highest]
    if not above:
        raise InputError(
            "A budget has to lie below one of the teachers at hand",
            f"{budget} was asked, and {told(teachers, budget)} were named",
            "Name a larger model with --model, or ask for less with --budget",
        )
    return min(above, key=lambda one: one.amount)


def told(teachers: Sequence[AtHand], budget: Budget) -> str:
    """Teachers with their sizes in the budget's measure, the largest first."""
    ordered = sorted(teachers, key=lambda one: -one.amount)
    return ", ".join(f"{one.phase} ({spoken(one.amount, budget.of)})" for one in ordered)
