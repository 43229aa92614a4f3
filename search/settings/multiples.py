"""Of what the sizes of students are multiples: of little, or of what programs that serve models ask."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

from search.settings.flags import Flags
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget
from space.enumeration.choices import DEPLOYMENT
from space.enumeration.enumeration import enumerate_space
from space.enumeration.limits import read_limits
from space.enumeration.search_space import SearchSpace
from space.input_error import InputError

logger = logging.getLogger(__name__)
DEPLOY, FINE, AUTO = "deploy", "fine", "auto"
#: By default, students of so many parameters have sizes for deployment, if so many architectures do.
_DEPLOYED_FROM, _ENOUGH = 1e9, 50


def enumerated(
    flags: Flags, axis_map: AxisMap, budget: Budget, parameters: float
) -> tuple[AxisMap, SearchSpace]:
    """Return all architectures near a budget, and the axis map with the multiples that their sizes are of.

    Args:
        flags: the user's flags.
        axis_map: the teacher's.
        budget: the budget.
        parameters: about how many parameters students have.

    Raises:
        InputError: there are none, or a limit cannot be met.
    """
    limits = read_limits(flags.keep, flags.sizes)
    if flags.multiples == DEPLOY or (flags.multiples == AUTO and parameters >= _DEPLOYED_FROM):
        deployed = replace(axis_map, multiples=DEPLOYMENT)
        with suppress(InputError):  # what else is wrong is found below
            space = enumerate_space(deployed, budget, limits)
            if flags.multiples == DEPLOY or len(space) >= _ENOUGH:
                return deployed, space
    space = enumerate_space(axis_map, budget, limits)
    if flags.multiples == DEPLOY:
        logger.info("no architecture lies within %s in sizes for deployment: they go in small steps", budget)
    return axis_map, space


def multiples_of(axis_map: AxisMap) -> str:
    """Return the name of the multiples that an axis map asks for: deploy or fine."""
    return DEPLOY if axis_map.multiples else FINE


def in_words(axis_map: AxisMap) -> str:
    """Return what the sizes are multiples of, for a person."""
    named = [f"{axis} of {step}" for axis, step in axis_map.multiples.items() if axis in axis_map.free]
    return f"{', '.join(named)}, for programs that serve models (--multiples fine for smaller steps)"
