"""What all parts share: the time that is left, and what becomes of a measurement that goes wrong."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import torch

from space.input_error import InputError
from studies.gpu.findings import Figures, Findings
from studies.gpu.shapes import Work

T = TypeVar("T")


class NotHereError(Exception):
    """A measurement needs what is not here; the message says what."""


class OutOfTimeError(Exception):
    """The time was used up within a measurement."""


class Bench:
    """One part of an acceptance.

    Args:
        part: its name.
        work: how much is measured.
        findings: take its figures.
        seconds: after which it begins no further measurement.
        whole: seconds that all parts together have left, which is never exceeded knowingly.
    """

    def __init__(self, part: str, work: Work, findings: Findings, seconds: float, whole: float) -> None:
        self.part, self.work, self.findings = part, work, findings
        now = time.monotonic()
        self._part_ends, self._ends, self._longest = now + seconds, now + whole, 0.0

    @property
    def left(self) -> float:
        """Seconds that the part has left; negative if it took longer."""
        return self._part_ends - time.monotonic()

    @property
    def whole_left(self) -> float:
        """Seconds that all parts together have left."""
        return self._ends - time.monotonic()

    def tick(self, _: float = 0) -> None:
        """Go on if there is any time at all; work that takes long calls it between its steps.

        Raises:
            OutOfTimeError: there is none.
        """
        if self.whole_left < 0:
            raise OutOfTimeError

    def measure(self, what: str, work: Callable[[], Figures], seconds: float = 0.0) -> None:
        """Measure something and keep its figures; see ``attempt``."""
        began = time.monotonic()
        found = self.attempt(what, work, seconds)
        if found is not None:
            self.findings.add(self.part, what, {**found, "took_s": time.monotonic() - began})

    def attempt(self, what: str, work: Callable[[], T], seconds: float = 0.0) -> T | None:
        """Return what some work returns; None if there was no result, and then the reason is kept.

        Memory that the work leaves is given back to the device.

        Args:
            what: its name, for the figures and the log.
            work: the work.
            seconds: that it takes at least. It does not begin when all parts together have less, or less than
                the longest one before it took.
        """
        if self.left < 0 or self.whole_left < max(self._longest, seconds):
            self.findings.add(self.part, what, {"skipped": "the time is used up"})
            return None
        print(f"{self.part}: {what}, {self.left:.0f} s left", file=sys.stderr, flush=True)
        began = time.monotonic()
        found, reason = _tried(work)
        release()
        self._longest = max(self._longest, time.monotonic() - began)
        if reason:
            print(f"{self.part}: {what}: {reason}", file=sys.stderr, flush=True)
            self.findings.add(self.part, what, reason)
        return found


def _tried(work: Callable[[], T]) -> tuple[T | None, Figures]:
    """Return what the work returns, or the reason why it returned nothing."""
    try:
        return work(), {}
    except NotHereError as error:
        return None, {"skipped": str(error)}
    except OutOfTimeError:
        return None, {"skipped": "the time was used up on the way"}
    except InputError as error:
        return None, {"refused": str(error)}
    except (torch.OutOfMemoryError, MemoryError) as error:
        return None, {"out_of_memory": str(error)}
    except Exception as error:
        traceback.print_exc()
        return None, {"failed": failure(error)}


def failure(error: Exception) -> str:
    """Return what went wrong in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def release() -> None:
    """Give what is no longer used back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory_errors() -> int:
    """Return how often PyTorch has found no memory; a training goes on with smaller micro-batches."""
    return int(torch.cuda.memory_stats().get("num_ooms", 0)) if torch.cuda.is_available() else 0


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes, until the device is done with it."""
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def median_seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """Return the median of several times, behind a first one that does not count."""
    return median([seconds_of(work) for _ in range(repeats + 1)][1:])
