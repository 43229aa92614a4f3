"""An acceptance on a GPU that anyone with a card can run: ``python -m studies.gpu --out FILE.json``.

It fetches nothing. Each figure is written to the file as it comes; at the end a table goes to stdout. Exit
status 0 if nothing failed, 1 if something did, 2 without a GPU.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import torch
import tyro

from search.terminal.command import exit_status
from space.input_error import InputError
from studies.gpu.bench import Bench, failure, release
from studies.gpu.cutting import measure_cutting
from studies.gpu.findings import Findings, about
from studies.gpu.memory import measure_memory
from studies.gpu.pace import measure_pace
from studies.gpu.parity import measure_parity
from studies.gpu.ranking import measure_ranking
from studies.gpu.search import measure_search
from studies.gpu.shapes import FULL, TOY
from studies.gpu.subject import Subjects

Part = Literal["memory", "pace", "ranking", "cutting", "parity", "search"]
#: The parts in their order, with their shares of the time. What one leaves over goes to those behind it.
SHARES: dict[Part, float] = {
    "memory": 5.0,
    "pace": 4.0,
    "ranking": 1.5,
    "cutting": 1.0,
    "parity": 2.0,
    "search": 13.5,
}
_MEASURES: dict[str, Callable[[Bench, Subjects], None]] = {
    "memory": measure_memory,
    "pace": measure_pace,
    "ranking": measure_ranking,
    "cutting": measure_cutting,
    "parity": measure_parity,
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Measure memory, speed and results of Slimsearch on a GPU, at the sizes that it is made for."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.json")]
    """The file for all figures; an old one is replaced."""
    minutes: Annotated[float, tyro.conf.arg(metavar="MINUTES")] = 8.0
    """Minutes of the whole."""
    teacher: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory of a small model to search in, with --data; half of the minutes are for it."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Text for that search."""
    parts: tuple[Part, ...] = ()
    """Parts to measure; all by default."""
    toy: tyro.conf.FlagCreatePairsOff[bool] = False
    """Try the code at a tiny size, without a GPU too. The figures then mean nothing."""

    @property
    def asked(self) -> list[Part]:
        """The parts that are measured, in their order."""
        every = [part for part in SHARES if part != "search" or self.teacher is not None]
        return [part for part in every if part in (self.parts or every)]


def main(arguments: Sequence[str]) -> int:
    """Measure what the arguments name, and return the exit status."""
    choice = tyro.cli(Choice, args=arguments, prog="python -m studies.gpu")
    return exit_status(partial(_main, choice))


def check(choice: Choice) -> None:
    """Check, before any work, that the choice can be measured here.

    Raises:
        InputError: it cannot.
    """
    if not torch.cuda.is_available() and not choice.toy:
        raise InputError(
            "The acceptance measures a GPU of NVIDIA",
            "PyTorch finds none here",
            "Run it where torch.cuda.is_available(), or try its code with --toy",
        )
    if not choice.minutes > 0:
        raise InputError("A measurement takes time", f"--minutes {choice.minutes:g} was given", "Try 8")
    if (choice.teacher is None) != (choice.data is None):
        given = "--teacher" if choice.data is None else "--data"
        raise InputError("A search needs a teacher and a text", f"only {given} was given", "Name both")
    if "search" in choice.parts and choice.teacher is None:
        raise InputError("A search needs a teacher and a text", "none was given", "Add --teacher and --data")
    for path in filter(None, (choice.teacher, choice.data)):
        if not path.exists():
            raise InputError(
                "A search reads teacher and text from the disk", f"{path} is not there", "Name another"
            )


def _main(choice: Choice) -> int:
    check(choice)
    ends = time.monotonic() + 60 * choice.minutes
    gc.freeze()  # libraries are never freed; scanning them after each measurement takes long
    choice.out.parent.mkdir(parents=True, exist_ok=True)
    findings = Findings(choice.out, about() | {"minutes": choice.minutes, "toy": choice.toy})
    with TemporaryDirectory() as folder:
        subjects, asked = Subjects(TOY if choice.toy else FULL, Path(folder)), choice.asked
        for place, part in enumerate(asked):
            whole = ends - time.monotonic()
            share = SHARES[part] / sum(SHARES[one] for one in asked[place:])
            bench = Bench(part, subjects.work, findings, share * whole, whole)
            measured(bench, partial(_measure, choice, subjects))
    print(findings.table())
    return 0 if findings.whole else 1


def _measure(choice: Choice, subjects: Subjects, bench: Bench) -> None:
    if bench.part != "search":
        _MEASURES[bench.part](bench, subjects)
    elif choice.teacher is not None and choice.data is not None:
        subjects.forget()
        measure_search(bench, choice.teacher, choice.data)


def measured(bench: Bench, measure: Callable[[Bench], None]) -> None:
    """Measure a part; an exception ends the part alone, and its message is kept."""
    began, failed = time.monotonic(), ""
    bench.findings.begin(bench.part)
    try:
        measure(bench)
    except Exception as error:
        failed = failure(error)
    release()
    bench.findings.end(bench.part, time.monotonic() - began, failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
