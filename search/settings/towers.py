"""``--keep-towers``: whether the teacher is a model of several parts into which its students can be put."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.teacher.config import find_config
from evaluators.teacher.towers import Towers, whole_config
from search.settings.config import RunConfig
from search.settings.resolved import Resolved
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.extraction import student_config
from space.input_error import InputError


def check_towers(resolved: Resolved) -> None:
    """Check that students can be put back, by the shapes of one of them.

    Raises:
        InputError: they cannot, the teacher has no other parts, or is to be trained before it is cut.
    """
    if resolved.config.keep_towers:
        if resolved.config.teacher_correction:
            raise InputError(
                "Other parts of a model belong to its text half as it was published",
                "--keep-towers was given with --correct-teacher, which trains it before it is cut",
                "Leave one of the two out",
            )
        middling = resolved.space.architectures[len(resolved.space) // 2]
        towers_of(resolved.config, resolved.axis_map, middling, range(middling.layers)).check()


def towers_of(
    config: RunConfig, axis_map: AxisMap, architecture: Architecture, kept: Sequence[int]
) -> Towers:
    """Return the other parts of a run's teacher, for a student of these sizes that keeps these layers.

    Raises:
        InputError: it has none.
    """
    directory = find_config(config.teacher, config.revision or None, config.trust_remote_code)
    student = student_config(axis_map, architecture, kept)
    return Towers(whole_config(directory, config.teacher), axis_map.config, student, config.teacher)
