"""Which repairs a run does: those of the user, or least squares where the disk has room for its moments."""

from __future__ import annotations

from pathlib import Path

from search.settings.flags import Flags
from search.settings.hours import saved_config
from search.settings.moments_plan import LEAST_SQUARES, MomentSums
from search.settings.targets_plan import free_bytes
from space.axes.axis_map import AxisMap

#: Share of the free disk that moments may take by default.
_OF_DISK = 0.25


def repairs_of(flags: Flags, axis_map: AxisMap, calibration: int, folder: Path) -> tuple[str, ...]:
    """Return the repairs that the user chose, or else least squares if the disk has room for its moments.

    Args:
        flags: the user's flags.
        axis_map: the teacher's.
        calibration: tokens of the calibration set.
        folder: of the run; one that goes on keeps what was decided.
    """
    if flags.repair:
        return tuple(name for name in flags.repair if name != "none")
    before = saved_config(folder / "config.toml")
    if before is not None and before.repair in ((), (LEAST_SQUARES,)):
        return before.repair
    sums = MomentSums.of(axis_map, 2 * axis_map.teacher.layers + 1, calibration)
    return (LEAST_SQUARES,) if sums.file <= _OF_DISK * free_bytes(folder) else ()
