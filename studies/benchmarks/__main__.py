"""Measure ratios within one run, ours beside a stated reference: ``python -m studies.benchmarks rank``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from space.input_error import InputError
from studies.benchmarks.distil import DistilWork, distil_suite
from studies.benchmarks.figure import Figure, table
from studies.benchmarks.kept import keep
from studies.benchmarks.memory import MemoryWork, memory_suite
from studies.benchmarks.rank import RankWork, rank_suite
from studies.benchmarks.search import SearchWork, search_suite
from studies.benchmarks.space import SpaceWork, space_suite

#: Every suite by name; each measures and returns its figures.
SUITES: dict[str, Callable[[], list[Figure]]] = {
    "space": lambda: space_suite(SpaceWork()),
    "rank": lambda: rank_suite(RankWork()),
    "distil": lambda: distil_suite(DistilWork()),
    "search": lambda: search_suite(SearchWork()),
    "memory": lambda: memory_suite(MemoryWork()),
}


@dataclass(frozen=True)
class Choice:
    """Measure ours beside a reference in the same run. Exit status 1 if a bound does not hold."""

    suite: tyro.conf.Positional[Literal["space", "rank", "distil", "search", "memory", "all"]] = "all"
    """Which to run."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON list."""
    keep: Path | None = None
    """A folder for a file of the figures with device, versions and date."""


def main(arguments: Sequence[str], suites: dict[str, Callable[[], list[Figure]]] = SUITES) -> int:
    """Run the suites that the arguments name, and print their figures."""
    choice = tyro.cli(Choice, args=arguments, prog="python -m studies.benchmarks", description=Choice.__doc__)
    names = list(suites) if choice.suite == "all" else [choice.suite]
    try:
        figures = [figure for name in names for figure in suites[name]()]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if choice.keep is not None:
        keep(choice.keep, choice.suite, figures)
    print(json.dumps([f.row() for f in figures], indent=1) if choice.json else table(figures))
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
