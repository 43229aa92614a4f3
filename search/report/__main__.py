"""``python -m search.report RUN``: draw the report of a finished run again, from its summary and ranking."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import tyro

from search.report import write_report
from search.runs.saved_run import find_run
from search.terminal.command import exit_status

_ABOUT = """examples:
  python -m search.report demo-1M
  python -m search.report runs/demo-1M
  python -m search.report /shared/runs/qwen3-4B

Draw report.html of a finished run again, and print its path.

It needs a run that is finished; python -m search.dashboard shows one that is not.
"""


def main(arguments: list[str] | None = None) -> int:
    """Draw the report of the named run, print its path, and return the exit status."""
    return exit_status(partial(_main, sys.argv[1:] if arguments is None else arguments))


def redraw(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN", help_behavior_hint="")],
) -> int:
    """Draw report.html of a finished run again, and print its path.

    Args:
        run: Directory of the run, or its name below runs/.
    """
    saved = find_run(run)
    write_report(saved.summary, saved.ranking_view, saved.directory.report)
    print(saved.directory.report)
    return 0


def _main(arguments: list[str]) -> int:
    return tyro.cli(redraw, args=arguments, prog="python -m search.report", description=_ABOUT)


if __name__ == "__main__":
    sys.exit(main())
