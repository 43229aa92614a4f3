"""Shells complete the command ``slimsearch``: its flags, and what they take."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def completion(shell: str) -> str:
    """What a user evaluates for the command ``slimsearch``."""
    called = "import sys; sys.argv[0] = '/usr/bin/slimsearch'; from search.run import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", called, "--tyro-print-completion", shell],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--bud"], {"--budget", "--budget-of", "--budget-dtype"}), (["--sampler", "n"], {"nsga2"})],
)
def test_shells_complete_flags_and_their_values(words: list[str], expected: set[str]) -> None:
    script = completion("bash")
    function = re.search(r"complete .*-F (\S+) slimsearch", script)
    assert function is not None
    line = " ".join(["slimsearch", *words])
    asked = (
        f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; COMP_LINE='{line}'\n"
        f"{function[1]}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert expected <= set(done.stdout.split())
    assert all(found.startswith(words[-1]) for found in done.stdout.split())
