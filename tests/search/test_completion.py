"""Shells complete the command ``slimsearch``: its flags, and what they take."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_python import warm_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> str:
    """What a user of bash evaluates for the command ``slimsearch``."""
    called = "import sys; sys.argv[0] = '/usr/bin/slimsearch'; from search.run import main; sys.exit(main())"
    done = warm_run([sys.executable, "-c", called, "--tyro-print-completion", "bash"], cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--bud"], {"--budget", "--budget-of", "--budget-dtype"}), (["--sampler", "n"], {"nsga2"})],
)
def test_shells_complete_flags_and_their_values(script: str, words: list[str], expected: set[str]) -> None:
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
