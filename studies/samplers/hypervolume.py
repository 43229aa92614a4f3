"""How much of what can be had a set of points has: the area that they dominate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search.rungs.bracket import pareto_front


def hypervolume(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The area that is dominated by points and dominates a reference (Zitzler and Thiele 1999).

    Args:
        points: (n, 2) objectives, minimised.
        reference: (2,) at least as bad as what counts.
    """
    area, above = 0.0, float(reference[1])
    front = pareto_front(points.tolist())
    for x, y in points[front]:
        if y < above:
            area += max(0.0, float(reference[0] - x)) * (above - float(y))
            above = float(y)
    return area
