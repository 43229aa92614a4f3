"""Which running trials are whose, what is left behind, and an end for candidates that hang.

A trial is claimed with a lease in its attributes. A worker that died leaves its lease behind, and whoever
comes next goes on with the trial. A candidate in which worker after worker dies, or that hangs far past the
time that others took, is given up with the reason. Claims are made under the turn of all workers.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search.rungs.evaluation import CandidateError
from search.storage.workers import Workers

#: Where a trial's lease stands among its attributes.
LEASE = "lease"
#: So many workers may die in one candidate before it is given up.
DEATHS = 3
#: A candidate may take so many times as long as the slowest one of its rung, and never less than so long.
SLOWER, SHORTEST_SECONDS = 10.0, 600.0
#: While no candidate of a rung was finished.
LONGEST_SECONDS = 24 * 3600.0
#: After its time limit a worker gets so long to give the candidate up itself.
GRACE_SECONDS = 60.0


class Claims:
    """The claims of one worker, and its view of those of others."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def lease(self, trial: FrozenTrial, finished: Sequence[FrozenTrial]) -> dict[str, Any]:
        """A lease on a trial for this worker.

        Args:
            trial: that is claimed; if it was claimed before, its lease says how often its worker died.
            finished: trials of the same rung, which tell how long one may take.
        """
        me, before = self.workers.me, trial.user_attrs.get(LEASE)
        return {
            "worker": me.name,
            "host": me.host,
            "kernel": me.kernel,
            "pid": me.pid,
            "since": time.time(),
            "limit_seconds": limit_seconds(finished),
            "deaths": before["deaths"] + 1 if before else 0,
        }

    def abandoned(self, trial: FrozenTrial) -> bool:
        """Whether a running trial has no worker that is alive."""
        lease = trial.user_attrs.get(LEASE)
        return lease is None or not self.workers.alive(lease)

    def hangs(self, trial: FrozenTrial) -> str | None:
        """Why a running trial of another worker that is alive has failed; None if it may go on."""
        lease = trial.user_attrs.get(LEASE)
        if lease is None or lease["worker"] == self.workers.me.name or self.abandoned(trial):
            return None
        age, limit = time.time() - lease["since"], lease["limit_seconds"]
        return f"hung past its limit of {limit:.0f} s" if age > limit + 2 * GRACE_SECONDS else None

    def kills_workers(self, trial: FrozenTrial) -> str | None:
        """Why a trial should not be tried again; None if it should.

        Args:
            trial: claimed by this worker.
        """
        if trial.user_attrs[LEASE]["deaths"] < DEATHS:
            return None
        return f"{DEATHS} workers died while they tried it: killed from outside, out of memory, or hanging"


def limit_seconds(finished: Sequence[FrozenTrial]) -> float:
    """How long a candidate may take, by what the others of its rung took."""
    took = [trial.duration for trial in finished if trial.state is TrialState.COMPLETE and trial.duration]
    if not took:
        return LONGEST_SECONDS
    return max(SHORTEST_SECONDS, SLOWER * (max(took) / timedelta(seconds=1)))


_STDERR = 2


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
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
