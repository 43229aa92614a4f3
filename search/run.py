"""The command line: ``python -m search.run --budget 4B``.

Exit status: 0 when the run is complete, 2 for input that cannot be worked with, 130 when stopped.
The result goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from typing import Any

from safetensors import SafetensorError

from space.input_error import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run the search that the arguments describe, and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _main(arguments)
    except InputError as error:
        print(f"slimsearch: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:
        if not _disk_full(error):
            raise
        print(
            "slimsearch: the disk is full. Make space and run the same command again to go on.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("slimsearch: stopped. Run the same command again to go on where it stopped.", file=sys.stderr)
        return 130


def _disk_full(error: Exception) -> bool:
    """Whether a write failed for want of space; safetensors says so in its message alone."""
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)


def _main(arguments: list[str]) -> int:
    # Threads that wait must not spin: on a busy machine that costs a factor of ten. Read when PyTorch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from search.flags import read_flags

    flags = read_flags(arguments)
    from search.console import Console
    from search.plan import plan
    from search.resolution import resolve
    from search.run_directory import RunDirectory

    console = Console(flags.quiet, flags.verbose)
    resolved = resolve(flags)
    directory = RunDirectory(flags.out / resolved.config.name)
    if flags.plan:
        print(plan(resolved, directory))
        return 0
    from search.stages import run

    console.say(
        f"{resolved.config.teacher}: {resolved.teacher_parameters:,} parameters; "
        f"{len(resolved.space)} architectures near {resolved.space.budget} "
        "(--model and --budget choose others)"
    )
    summary = run(resolved, directory, console, f"python -m search.run {shlex.join(arguments)}")
    print(outcome(summary, directory))
    return 0


def outcome(summary: dict[str, Any], directory: Any) -> str:
    """The result in a few lines: the chosen model, the teacher, the baselines, the report."""
    from search.report.within_bounds import over_labels, unmet

    if summary["chosen"] is None:
        return f"{unmet(summary) or 'No model could be retrained'}; see {directory.report}"
    rows = {row["label"]: row for row in (*summary["baselines"], *summary["promoted"]) if row["path"]}
    chosen = rows[summary["chosen"]["label"]]
    lines = [
        f"chosen   {chosen['label']}  {chosen['parameters']:,} parameters  loss {chosen['loss']:.4f}",
        f"         {directory.path / chosen['path']}",
        f"         {summary['chosen']['reason']}",
        f"teacher  {summary['teacher']['parameters']:,} parameters  loss {summary['teacher']['loss']:.4f}",
    ]
    for row in summary["baselines"]:
        loss = "failed" if row["loss"] is None else f"{row['loss']:.4f}"
        over = ", over the bound" if row["label"] in over_labels(summary) else ""
        lines.append(f"{row['origin']:<15} {row['label']}  loss {loss}{over}")
    return "\n".join([*lines, f"report   {directory.report}"])


if __name__ == "__main__":
    sys.exit(main())
