"""``python -m search.compare RUN RUN``: compare finished runs in a table, with ``--out`` in a page too."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from search.report.document import page_html
from search.report.figures.joint import NamedSummary, joint_figure
from search.runs.comparison import Comparison
from search.runs.saved_run import find_run
from search.storage.run_directory import atomic_write
from search.terminal.command import exit_status, flag_help
from search.terminal.format import text_table
from space.input_error import InputError

_DESCRIPTION = """examples:
  python -m search.compare demo-1M demo-1200k
  python -m search.compare runs/family/* --out family.html
  python -m search.compare runs/seed-0 runs/seed-1 --json

Lay finished runs side by side.
"""


def _arg(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@flag_help
@dataclass(frozen=True)
class CompareFlags:
    """Lay finished runs side by side."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, _arg("RUN RUN ...")]
    """Directories of runs, or their names below runs/."""
    out: Annotated[Path | None, _arg("FILE.html")] = None
    """Write a page with the joint Pareto front, which opens offline."""
    json: bool = False
    """Print one JSON object."""


def main(arguments: list[str] | None = None) -> int:
    """Compare the runs that the command-line arguments name, and return the exit status."""
    return exit_status(partial(_main, sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    flags = tyro.cli(
        CompareFlags,
        args=arguments,
        prog="python -m search.compare",
        description=_DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    found = Comparison([find_run(name) for name in flags.runs])
    different = len({run.path.resolve() for run in found.runs})
    if different < max(2, len(found.runs)):
        raise InputError(
            "Two runs or more are compared, each named once",
            f"{len(found.runs)} were named, of which {different} differ",
            "Name the directories of other runs",
        )
    if flags.out is not None:
        _write(comparison_html(found), flags.out)
    print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if flags.json else in_words(found))
    if flags.out is not None:
        print(f"slimsearch: wrote {flags.out}", file=sys.stderr)
    return 0


def in_words(found: Comparison) -> str:
    """Return the table, the settings that differ, and cautions about what cannot be compared."""
    head = ["", *found.names]
    rows = found.setting_rows()
    lines = text_table([["run", *found.names], *found.rows()])
    lines += ["", *(["asked differently", *text_table([head, *rows])] if rows else ["asked the same"])]
    return "\n".join([*lines, *(f"\n{caution}" for caution in found.cautions())])


def comparison_html(found: Comparison) -> str:
    """Return the comparison as a self-contained HTML page."""
    shown = [NamedSummary(name, run.summary) for name, run in zip(found.names, found.runs, strict=True)]
    quality = "loss" if found.losses_compare else "bits_per_byte"
    return page_html(
        "compare.html.j2",
        names=found.names,
        cautions=found.cautions(),
        figure=joint_figure(shown, quality, found.latencies_compare),
        rows=found.rows(),
        settings=found.setting_rows(),
    )


def _write(html: str, path: Path) -> None:
    try:
        atomic_write(path, html)
    except OSError as error:
        raise InputError(
            "The page needs a folder that is there and writable",
            f"{path}: {error.strerror}",
            "Name another with --out",
        ) from None


if __name__ == "__main__":
    sys.exit(main())
