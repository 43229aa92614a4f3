"""The main command, ``python -m search.run --budget 4B``: runs a search from teacher to retrained models.

Exit status: 0 when the run is complete, 2 for invalid input, 130 when stopped, 1 when one of several
processes that train together was lost. The result goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from functools import partial

from search.stages.launch import lead_or_follow
from search.terminal.command import exit_status, is_multi_process, kept_for_good, redact_password


def main(arguments: list[str] | None = None) -> int:
    """Run the search with these command-line arguments, and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Waiting threads must not spin: on a busy machine that is ten times slower. PyTorch reads it on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if is_multi_process():
        lead_or_follow(partial(_status, arguments))
    return _status(arguments)


def _status(arguments: list[str]) -> int:
    return exit_status(
        partial(_main, arguments),
        stopped="Run the same command again to go on where it stopped.",
        after_space="run the same command again to go on",
    )


def _main(arguments: list[str]) -> int:
    from search.settings.command_line import read_flags

    flags = read_flags(arguments)
    command = f"python -m search.run {shlex.join(map(redact_password, arguments))}"
    from search.settings.flag_rules import budgets_named

    if len(budgets_named(flags)) > 1:
        with kept_for_good():
            from search.family.family import run_family

        print(run_family(flags, command))
        return 0
    with kept_for_good():
        from search.planning.messages import (
            as_json_line,
            hours_line,
            opening_line,
            result_as_dict,
            result_text,
        )
        from search.planning.plan import plan
        from search.settings.resolution import resolve
        from search.stages.pipeline import run
        from search.storage.run_directory import RunDirectory
        from search.terminal.console import Console

    console = Console(flags.quiet, flags.verbose)
    resolved = resolve(flags)
    directory = RunDirectory(flags.out / resolved.config.name)
    if flags.plan:
        planned = plan(resolved, directory, flags.verbose)
        print(as_json_line(planned.as_dict()) if flags.json else planned)
        return 0
    console.say(opening_line(resolved))
    if resolved.config.hours:
        console.say(hours_line(resolved))
    summary = run(resolved, directory, console, command)
    print(as_json_line(result_as_dict(summary, directory)) if flags.json else result_text(summary, directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
