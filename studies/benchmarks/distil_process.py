"""A process of its own for each side of a comparison, and what memory its work takes.

Accelerate holds one precision a process, and the height of a process's memory is known only of a whole one.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from studies.bench.apart import processes

Given = ParamSpec("Given")
Found = TypeVar("Found")


def in_process(work: Callable[Given, Found], *given: Given.args, **named: Given.kwargs) -> Found:
    """What a function returns that runs in a fresh process; on a host without a GPU on one thread.

    Args:
        work: a function that another process can import.
        given: to it.
        named: to it.
    """
    with processes(1) as pool:
        future = pool.submit(_quietly, work, given, named)
        return future.result()  # type: ignore[return-value]


def _quietly(work: Callable[..., object], given: tuple[object, ...], named: dict[str, object]) -> object:
    """The output is for the figures alone, so that what libraries print goes elsewhere."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with redirect_stdout(sys.stderr):
        return work(*given, **named)


class Peak:
    """How much memory work takes at its height, beyond what there was before.

    On a GPU what PyTorch has allocated; on the host the resident memory of this process, on Linux.
    """

    def __init__(self) -> None:
        """Begin here."""
        self.begin_again()
        if torch.cuda.is_available():
            self._before = torch.cuda.memory_allocated()
        else:
            self._before = _kibibytes("/proc/self/status", "VmRSS") * 1024

    def begin_again(self) -> None:
        """Forget the height so far; what there was before stays what it was."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        # Where the mark cannot be put down to what there is now, the figure is too high, never too low.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        """Until now."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self._before
        return _kibibytes("/proc/self/status", "VmHWM") * 1024 - self._before


def available_bytes() -> int:
    """Memory of the host that nobody uses."""
    return _kibibytes("/proc/meminfo", "MemAvailable") * 1024


def _kibibytes(path: str, name: str) -> int:
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
