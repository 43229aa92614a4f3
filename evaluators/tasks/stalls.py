"""Ends what hangs: code of others that gives no sign for too long.

A task of the evaluation harness may wait forever for a download, or generate without end. Neither can be told
from slow work by its duration, but slow work writes to its progress bar. So what the code writes is listened
to, and after a long silence it is interrupted.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from types import FrameType
from typing import NoReturn

from space.input_error import InputError

#: The longest silence of something that is still at work, in seconds.
SILENCE = 1800.0
#: How often a silence is looked for, as a share of the longest one.
_LOOKS = 1 / 30


class StalledError(InputError):
    """Something gave no sign for too long."""


class _Heard(StringIO):
    """A stream that keeps nothing but the time at which it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.last = time.monotonic()

    def write(self, text: str, /) -> int:
        self.last = time.monotonic()
        return len(text)


@contextmanager
def interrupted_if_silent(what: str, seconds: float | None = None) -> Iterator[None]:
    """Within the context, standard output and error are swallowed, and a long silence on both ends it.

    The interruption is a signal, so only the main thread of a process is watched, on systems with timers;
    elsewhere the context only swallows. Code that catches the error is interrupted again.

    Args:
        what: names the work, for the error.
        seconds: the longest silence; by default ``SILENCE``.

    Raises:
        StalledError: nothing was written for that long.
    """
    longest, heard = SILENCE if seconds is None else seconds, _Heard()

    def look(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - heard.last > longest:
            _stop(what, longest)

    with redirect_stderr(heard), redirect_stdout(heard):
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
            yield
            return
        before, began = signal.signal(signal.SIGALRM, look), time.monotonic()
        left, interval = signal.setitimer(signal.ITIMER_REAL, longest * _LOOKS, longest * _LOOKS)
        try:
            yield
        finally:  # a timer from outside goes on, and at once if it would have ended meanwhile
            rest = max(left - (time.monotonic() - began), 1e-3) if left else 0.0
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, rest, interval)


def _stop(what: str, longest: float) -> NoReturn:
    raise StalledError(
        f"Code of others has to give a sign once in {longest / 60:.3g} minutes",
        f"{what} gave none, and was stopped",
        "See whether the data that it needs can be had, or leave it out",
    )
