"""Architectures that a user names with ``--try``: within budget and bounds, and tried with the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.settings.bounds import Bounds
from search.settings.costs import Costs, KeptOf, check_any_inside, inside
from space.axes.architecture import Architecture
from space.enumeration.by_hand import completions, read_named
from space.enumeration.limits import Limits
from space.enumeration.search_space import SearchSpace


def by_hand(
    texts: Sequence[str],
    costs: Costs,
    space: SearchSpace,
    limits: Limits,
    bounds: Bounds,
    kept_of: KeptOf | None = None,
) -> list[Architecture]:
    """The architectures that a user means, each once.

    Args:
        texts: as typed, such as ``hidden=3072,mlp=9216``.
        costs: of the students of the teacher.
        space: of the search.
        limits: of the user on it.
        bounds: of the user.
        kept_of: which layers are kept, where that is known.

    Raises:
        InputError: one cannot be read, is none of the class, or lies outside the budget or the bounds.
    """
    found: dict[Architecture, None] = {}
    for text in texts:
        meant = completions(read_named(text), costs.axis_map, space, limits)
        amounts = costs.table(meant.table, kept_of)
        which = f"all {len(meant)} architectures" if len(meant) > 1 else "the architectures"
        check_any_inside(amounts, bounds, f"{which} within {space.budget} with --try {text}")
        found[meant[int(np.flatnonzero(inside(amounts, bounds))[0])]] = None
    return list(found)
