"""An end for candidates that hang: a time limit on whatever happens within a context.

At the limit an alarm interrupts the main thread. A call that never returns to Python cannot be interrupted;
a minute later the process ends, and the candidate counts as one in which a worker died. So does one that
several processes train at the limit: interrupted, the main process leaves the others in the training, and
all of them end.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from search.rungs.claims import GRACE_SECONDS
from search.rungs.evaluation import CandidateError

_STDERR = 2


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give up what takes longer.

    Args:
        seconds: from now.

    Raises:
        CandidateError: the time is over.
    """
    began, (left, _) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
    # Only the main thread has alarms; a shorter one of somebody else's stays.
    if threading.current_thread() is not threading.main_thread() or 0 < left < seconds:
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise CandidateError(f"hung past its limit of {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3) if left else 0)
        signal.signal(signal.SIGALRM, before)
