"""A figure of a benchmark: ours beside a reference measured in the same run, and what has to hold."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One row: how ours compares with the reference, more being better."""

    name: str
    """With the unit of ``ours`` and ``reference``."""
    ours: float
    reference: float
    ratio: float
    """How many times better ours is."""
    bound: float
    """The least ratio that is good enough."""
    most: float | None = None
    """The greatest ratio that is good enough, where more is not better."""
    missing: str = ""
    """Why there is no reference, which is then no number; the figure holds nonetheless."""

    @property
    def holds(self) -> bool:
        """Whether it is good enough."""
        within = self.most is None or self.ratio <= self.most
        return bool(self.missing) or (self.ratio >= self.bound and within)

    def row(self) -> dict[str, Any]:
        """For JSON."""
        row = asdict(self) | {"holds": self.holds}
        if self.most is None:
            del row["most"]
        if self.missing:
            return row | {"reference": None, "ratio": None}
        del row["missing"]
        return row


def in_turns(
    ours: Callable[[], object],
    reference: Callable[[], object],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """The median times of both in seconds, one after the other so that both meet the same machine.

    Each is run once before. ``clock`` counts the seconds, by default of the wall.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for work, found in zip((ours, reference), times, strict=True):
            gc.collect()
            began = clock()
            work()
            if turn:
                found.append(clock() - began)
    return median(times[0]), median(times[1])


def table(figures: Sequence[Figure]) -> str:
    """For people: a row a figure, columns aligned."""
    head = ("name", "ours", "reference", "ratio", "bound", "holds")
    rows = [
        (f.name, f"{f.ours:.4g}", *_beside(f), _bounds(f), "-" if f.missing else _yes(f.holds))
        for f in figures
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for name, *cells in (head, *rows):
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def _beside(figure: Figure) -> tuple[str, str]:
    """Reference and ratio, or what there is instead."""
    return (figure.missing, "-") if figure.missing else (f"{figure.reference:.4g}", f"{figure.ratio:.2f}")


def _bounds(figure: Figure) -> str:
    most = "" if figure.most is None else f" ≤ {figure.most:.3g}"
    return f"≥ {figure.bound:.3g}{most}"


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"
