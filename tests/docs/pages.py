"""The pages of docs/ as programs: what a page says is done, step by step, in a folder of its own.

Of the fenced blocks of a page

- ``console`` is run by bash: lines that begin with ``$`` are commands, the others have to occur in what
  these say; variables that are set so hold for the rest of the page;
- ``python`` is run as a script, or written to the file that stands beside the word;
- ``diff`` is applied: lines with a space or a minus have to occur just once in the file, one after the other;
- ``sh`` needs what a test does not have, so that only its grammar and the flags are looked at;
- ``text`` is to be read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
KINDS = ("console", "python", "diff", "sh", "text")
_FENCE = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SET = re.compile(r"(?:export )?(\w+)=.*")
_SECONDS = 250


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, what stands beside the kind, and its lines."""

    kind: str
    beside: str
    text: str


@dataclass(frozen=True)
class Step:
    """A command and what has to occur in its output."""

    command: str
    said: tuple[str, ...]


def blocks(page: str) -> list[Block]:
    """The blocks of a page by its name, in order."""
    return [Block(*found) for found in _FENCE.findall((DOCS / page).read_text(encoding="utf-8"))]


def steps(text: str) -> list[Step]:
    """The commands of a console."""
    first, *rest = re.split(r"^\$ ?", text.replace("\\\n", " "), flags=re.MULTILINE)
    assert not first, f"{first!r} is said before any command"
    return [Step(command, tuple(said)) for command, *said in (part.splitlines() for part in rest)]


@dataclass
class Follower:
    """Does what a page says.

    Args:
        folder: where it is done.
        code: root of the packages.
        settings: variables that the page sets and tells the reader to set otherwise.
    """

    folder: Path
    code: Path = ROOT
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._set: list[str] = []
        self._left = dict(self.settings)

    def follow(self, page: str) -> None:
        """Do all of a page; the first step that does not end as the page says fails."""
        for block in blocks(page):
            if block.kind == "console":
                for step in steps(block.text):
                    self._run(step)
            elif block.kind == "python" and block.beside:
                (self.folder / block.beside).write_text(block.text, encoding="utf-8")
            elif block.kind == "python":
                self._call([sys.executable, "-c", block.text])
            elif block.kind == "diff":
                apply(block.text, self.folder)
        assert not self._left, f"{page} does not set {', '.join(self._left)}"

    def _run(self, step: Step) -> None:
        if setting := _SET.fullmatch(step.command):
            name = setting[1]
            value = self._left.pop(name, None)
            self._set.append(step.command if value is None else f"{name}='{value}'")
            return
        told = self.do("\n".join([*self._set, step.command]))
        for line in step.said:
            assert line in told, f"{step.command!r} does not say {line!r} but\n{told}"
            told = told[told.index(line) + len(line) :]

    def do(self, command: str) -> str:
        """What a command says that succeeds."""
        return self._call(["bash", "-euo", "pipefail", "-c", command])

    @property
    def environment(self) -> dict[str, str]:
        """That of this Python, with the packages on its path and a cache of its own."""
        return os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.code),
            "SLIMSEARCH_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def _call(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=_SECONDS
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def apply(diff: str, root: Path) -> None:
    """Change a file as a diff says; the numbers of lines do not matter, and may be left out."""
    head, *hunks = re.split(r"^@@.*\n", diff, flags=re.MULTILINE)
    path = root / head.splitlines()[1].removeprefix("+++ b/")
    text = path.read_text(encoding="utf-8")
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if not line.startswith("+"))
        new = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert text.count(old) == 1, f"{path} has {text.count(old)} times\n{old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
