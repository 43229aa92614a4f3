"""Commands that run side by side, each in a process of its own, and are ended when their time is used up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Seconds between two looks at the processes, and between two lines about what they say.
_LOOK, _SAY = 0.2, 30.0


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    """Exit status; negative if a signal ended it."""
    seconds: float
    in_time: bool
    """Whether it ended by itself."""
    output: str
    """What it wrote to stdout."""
    last_line: str
    """The last line that it wrote to stderr."""


def run_commands(commands: Mapping[str, Sequence[str]], seconds: float, folder: Path) -> dict[str, Ended]:
    """Run Python with each of these arguments, and wait for all.

    Args:
        commands: arguments of Python by name.
        seconds: after which those that still run are killed.
        folder: for what they write.
    """
    began = time.monotonic()
    running = {name: _started(arguments, folder / name) for name, arguments in commands.items()}
    ended: dict[str, Ended] = {}
    said = began
    try:
        while len(ended) < len(running) and time.monotonic() - began < seconds:
            for name in running.keys() - ended.keys():
                if running[name].poll() is not None:
                    ended[name] = _ended(running[name], folder / name, time.monotonic() - began, True)
            if time.monotonic() - said > _SAY:
                said = time.monotonic()
                _say(running.keys() - ended.keys(), folder)
            time.sleep(_LOOK)
    finally:
        for name in running.keys() - ended.keys():
            _kill(running[name])
            ended[name] = _ended(running[name], folder / name, time.monotonic() - began, False)
    return ended


def _started(arguments: Sequence[str], path: Path) -> subprocess.Popen[bytes]:
    with path.with_suffix(".out").open("wb") as out, path.with_suffix(".err").open("wb") as err:
        # In a session of its own it is killed with the processes that it starts.
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ended(process: subprocess.Popen[bytes], path: Path, seconds: float, in_time: bool) -> Ended:
    output = path.with_suffix(".out").read_text(encoding="utf-8", errors="replace")
    return Ended(process.returncode, seconds, in_time, output, _last_line(path))


def _last_line(path: Path) -> str:
    lines = path.with_suffix(".err").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _say(names: set[str], folder: Path) -> None:
    for name in sorted(names):
        print(f"{name}: {_last_line(folder / name)}", file=sys.stderr, flush=True)
