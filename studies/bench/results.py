"""What was measured so far: a line of JSON for every run, so that a study goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """The runs of a study; a run is known by some of its fields."""

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path, self.key = path, key

    def rows(self) -> list[Row]:
        """All runs, in order."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one more run; several processes may."""
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(row) + "\n")

    def missing(self, runs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the runs that have no result."""
        have = {tuple(row.get(name) for name in self.key) for row in self.rows()}
        return [run for run in runs if tuple(run.get(name) for name in self.key) not in have]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def effect(values: Mapping[int, float], reference: Mapping[int, float]) -> str:
    """Mean and standard deviation of the difference, seed by seed."""
    both = [values[seed] - reference[seed] for seed in values.keys() & reference.keys()]
    return f"{spread(both)}" if both else ""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, its first column to the left and all others to the right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
