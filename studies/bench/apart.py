"""A process for each teacher: Accelerate holds one precision a process, and teachers differ in theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def apart(work: Callable[..., None], teachers: Sequence[str], *handed_on: object) -> None:
    """Do the work of one teacher after the other.

    Args:
        work: of a teacher; a function that another process can import.
        teachers: their names.
        handed_on: to it, behind the name.
    """
    for teacher in teachers:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(work, teacher, *handed_on).result()
