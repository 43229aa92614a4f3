"""A process for each teacher: Accelerate holds one precision a process, and teachers differ in theirs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

_LOOK_SECONDS = 1.0


def apart(work: Callable[..., None], teachers: Sequence[str], *handed_on: object) -> None:
    """Do the work of one teacher after the other.

    Args:
        work: of a teacher; a function that another process can import.
        teachers: their names.
        handed_on: to it, behind the name.
    """
    for teacher in teachers:
        with processes(1) as pool:
            pool.submit(work, teacher, *handed_on).result()


def processes(number: int) -> ProcessPoolExecutor:
    """Return a pool of processes that end with this one, however it ends."""
    return ProcessPoolExecutor(number, get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
