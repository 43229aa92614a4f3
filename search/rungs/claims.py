"""Leases of running trials, recovery of abandoned ones, and a time limit for candidates that hang.

A worker claims a trial by a lease in the trial's attributes, while it holds the lock that all workers share.
If it crashes, another worker sees from the lease that it is gone, and resumes the trial. A candidate fails if
several workers crash in it, or if it runs far longer than others took.

At the limit an alarm interrupts the main thread. A call that never returns to Python cannot be interrupted:
a minute later the process exits, which counts as a crash in that candidate. So does a timeout in
distributed training, where the interrupted main process leaves the others behind and all of them end.
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

#: The user attribute that holds a trial's lease.
LEASE = "lease"
#: A candidate fails once this many workers have crashed in it.
DEATHS = 3
#: The time limit: this many times the duration of the slowest candidate of the rung, and at least so long.
SLOWER, SHORTEST_SECONDS = 10.0, 600.0
#: The time limit while no candidate of the rung is complete.
LONGEST_SECONDS = 24 * 3600.0
#: After the time limit, how long a worker has to fail the candidate itself.
GRACE_SECONDS = 60.0


class Claims:
    """Claims trials for one worker, and checks the claims of others."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def lease(self, trial: FrozenTrial, finished: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return a lease on a trial for this worker.

        Args:
            trial: the trial to claim. Its earlier lease, if any, counts the workers that crashed in it.
            finished: trials of the same rung, from which the time limit follows.
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
        """Whether no live worker holds a running trial."""
        lease = trial.user_attrs.get(LEASE)
        return lease is None or not self.workers.alive(lease)

    def hangs(self, trial: FrozenTrial) -> str | None:
        """Return why a running trial of another live worker has to fail; None if it may go on."""
        lease = trial.user_attrs.get(LEASE)
        if lease is None or lease["worker"] == self.workers.me.name or self.abandoned(trial):
            return None
        age, limit = time.time() - lease["since"], lease["limit_seconds"]
        return f"hung past its limit of {limit:.0f} s" if age > limit + 2 * GRACE_SECONDS else None

    def kills_workers(self, trial: FrozenTrial) -> str | None:
        """Return why a trial should not be resumed, if too many workers crashed in it; else None.

        Args:
            trial: claimed by this worker.
        """
        if trial.user_attrs[LEASE]["deaths"] < DEATHS:
            return None
        return f"{DEATHS} workers died while they tried it: killed from outside, out of memory, or hanging"


def limit_seconds(finished: Sequence[FrozenTrial]) -> float:
    """Return a candidate's time limit, from the durations of the complete trials of its rung."""
    times = [trial.duration for trial in finished if trial.state is TrialState.COMPLETE and trial.duration]
    if not times:
        return LONGEST_SECONDS
    return max(SHORTEST_SECONDS, SLOWER * (max(times) / timedelta(seconds=1)))


_STDERR = 2


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the body of the context after a time limit.

    Args:
        seconds: the limit, from now.

    Raises:
        CandidateError: the limit has passed.
    """
    began, (left, _) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
    # Only the main thread can set alarms; a shorter alarm that is already set stays in force.
    if threading.current_thread() is not threading.main_thread() or 0 < left < seconds:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise CandidateError(f"hung past its limit of {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3) if left else 0)
        signal.signal(signal.SIGALRM, before)
