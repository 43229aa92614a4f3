"""Which losses lie so far out that a scale made for them would hide the differences that matter."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

#: A gap of more than this many times the median gap is far out.
_FAR = 4.0


def farthest_near(losses: Iterable[float], teacher: float) -> float:
    """The highest of ``losses`` whose gap to the teacher's loss is at most 4 times the median gap.

    All in nats per token; the teacher's loss itself if there are none.
    """
    known = sorted(losses)
    if not known:
        return teacher
    limit = max(teacher + _FAR * max(0.0, median(known) - teacher), known[0])
    return max(loss for loss in known if loss <= limit)
