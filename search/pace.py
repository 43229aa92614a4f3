"""How fast this device is at the students of a run, as one of them tells."""

from __future__ import annotations

import torch

from evaluators.pace import Pace, student_pace
from search.costs import workload_of
from space.axis_map import AxisMap
from space.extraction import student_config
from space.search_space import SearchSpace


def pace_of(
    axis_map: AxisMap, space: SearchSpace, device: str, dtype: str, batch_blocks: int, block: int
) -> Pace:
    """What a student of the middling size does here; takes some ten seconds."""
    middle = space.architectures[int(space.parameters.argsort()[len(space) // 2])]
    config = student_config(axis_map, middle, range(middle.layers))
    return student_pace(config, torch.device(device), dtype, batch_blocks, block, workload_of(device))
