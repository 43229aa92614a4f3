"""How fast this device is at the students of a run, as one of them tells."""

from __future__ import annotations

import numpy as np
import torch

from evaluators.metrics.pace import Pace, student_pace
from search.settings.costs import workload_of
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.extraction import student_config
from space.enumeration.search_space import SearchSpace


def pace_of(
    axis_map: AxisMap, space: SearchSpace, device: str, dtype: str, batch_blocks: int, block: int
) -> Pace:
    """What a student of middling shape does here; takes some ten seconds."""
    middle = middling(space)
    config = student_config(axis_map, middle, range(middle.layers))
    return student_pace(config, torch.device(device), dtype, batch_blocks, block, workload_of(device))


def middling(space: SearchSpace) -> Architecture:
    """The architecture whose sizes lie nearest to the means of the space, by their logarithms in sum.

    Near one budget all have as many parameters; what a step takes depends on layers and widths.
    """
    sizes = space.table[:, space.table.min(0) > 0]
    distances = np.abs(np.log(sizes / sizes.mean(0))).sum(1)
    return space.architectures[int(np.round(distances, 9).argmin())]
