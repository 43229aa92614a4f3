"""The energy that a run took, as far as its machines tell, over all of its processes.

A device counts for whoever uses it, so that of all workers that see it one at a time reads it: the one
that holds the lock on its file. When that worker ends another takes over, and the file goes on from where
it was.
"""

from __future__ import annotations

import fcntl
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from evaluators.metrics.energy import EnergyCounter, energy_counters

#: Far below the minutes after which a processor's counter begins anew.
_EVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Energy:
    """What the counters of a run came to, in joules."""

    joules: float
    counters: dict[str, float]
    """By the name of the device."""


@contextmanager
def metered(folder: Path, device: str) -> Iterator[None]:
    """Count what is used within the context, if the machine tells.

    Args:
        folder: where the run keeps what it used; made if there is something to keep.
        device: that the run works on.
    """
    counters = energy_counters(torch.device(device))
    if not counters:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    gone = threading.Event()
    thread = threading.Thread(target=_count, args=(counters, folder, gone), daemon=True)
    thread.start()
    try:
        yield
    finally:
        gone.set()
        thread.join()


def spent(folder: Path) -> Energy | None:
    """What the run has used so far, up to the last seconds; None if nothing was counted."""
    counters: dict[str, float] = {}
    for path in sorted(folder.glob("*")):
        joules, _, name = path.read_text(encoding="utf-8", errors="replace").partition("\n")
        if joules:
            counters[name.strip()] = counters.get(name.strip(), 0.0) + round(float(joules), 3)
    return Energy(round(sum(counters.values()), 3), counters) if counters else None


class Tally:
    """One counter and its file, which this process adds to while it has the lock.

    Args:
        counter: to read.
        folder: of the files.
    """

    def __init__(self, counter: EnergyCounter, folder: Path) -> None:
        self.counter = counter
        self.path = folder / re.sub(r"[^A-Za-z0-9.-]", "_", counter.key)
        self._file: IO[str] | None = None
        self._before = 0.0

    def add(self) -> None:
        """Take the lock if it is free, and write down what was used since it was taken."""
        try:
            self._file = self._file or self._taken()
            if self._file is not None:
                total = self._before + self.counter.joules()
                self._file.seek(0)
                # As long as what stood there before, so that it is never cut off.
                self._file.write(f"{total:020.3f}\n{self.counter.name}\n")
                self._file.flush()
        except Exception:  # a counter that went away, or a full disk, is no reason to end a run
            return

    def close(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()

    def _taken(self) -> IO[str] | None:
        """The file, locked; what was used until now has been counted by others, or by nobody."""
        self.path.touch()
        file = self.path.open("r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        self._before = float(file.readline().strip() or 0) - self.counter.joules()
        return file


def _count(counters: Sequence[EnergyCounter], folder: Path, gone: threading.Event) -> None:
    with ExitStack() as stack:
        tallies = [Tally(counter, folder) for counter in counters]
        for tally in tallies:
            stack.callback(tally.close)
            tally.add()
        ending = False
        while not ending:
            ending = gone.wait(_EVERY_SECONDS)
            for tally in tallies:
                tally.add()
