"""What a command leaves a user with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Answer:
    """Its exit status, and what it printed."""

    status: int
    out: str
    err: str


Run = Callable[..., Answer]


def answer_of(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> Answer:
    """Run a command in this process."""
    capsys.readouterr()
    status = main([*map(str, arguments)])
    return Answer(status, *capsys.readouterr())
