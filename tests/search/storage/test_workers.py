"""Who is at work is known from locks; decisions are taken in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search.storage.workers import Workers
from tests.warm_python import WarmPopen

ROOT = Path(__file__).resolve().parents[3]
#: Is a worker until its input ends, or it is killed.
OTHER = """
import sys
from pathlib import Path
from search.storage.workers import Workers
workers = Workers(Path(sys.argv[1]))
with workers.present(), workers.turn("matter"):
    print(workers.me.name, workers.me.kernel, flush=True)
    sys.stdin.read()
"""


def start(folder: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = WarmPopen(
        [sys.executable, "-c", OTHER, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    name, kernel = process.stdout.readline().split()
    return process, {"worker": name, "kernel": kernel}


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "ended"])
def test_another_worker_is_alive_until_it_ends_however_it_does(kill: bool, tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    process, lease = start(tmp_path)
    with process, workers.present():
        assert workers.alive(lease)
        assert workers.others() == 1
        with workers.attempt("matter") as free:
            assert not free
        with workers.attempt("another matter") as free:
            assert free
        if kill:
            process.kill()
        else:
            process.communicate()
        process.wait()
        assert not workers.alive(lease)
        assert workers.others() == 0
        with workers.attempt("matter") as free:
            assert free


def test_a_worker_of_another_host_lives_as_long_as_its_file_is_renewed(tmp_path: Path) -> None:
    """Its lock is not seen here: the file lies there, and nobody on this system holds it."""
    workers = Workers(tmp_path)
    with workers.present():
        path = tmp_path / "workers" / "far"
        path.touch()
        far = {"worker": "far", "kernel": "another"}
        assert workers.alive(far)
        os.utime(path, (time.time() - 119,) * 2)
        assert workers.alive(far)
        os.utime(path, (time.time() - 121,) * 2)
        assert not workers.alive(far)
        os.utime(path)
        assert not workers.alive({**far, "kernel": workers.me.kernel}), "here its lock would be seen"
        path.unlink()
        assert not workers.alive(far)


def test_whoever_waits_says_so(tmp_path: Path) -> None:
    one, other, said = Workers(tmp_path), Workers(tmp_path), []

    def say(text: str) -> None:
        said.append(text)
        first.__exit__(None, None, None)

    first = one.exclusive_or_wait("ranking", say)
    first.__enter__()
    assert said == []
    with other.exclusive_or_wait("ranking", say):
        assert said == ["another worker is at the ranking; waiting for it"]


def test_alone_everybody_else_is_dead_and_nothing_is_written() -> None:
    workers = Workers()
    with workers.present(), workers.turn("anything"), workers.attempt("anything") as free:
        assert free
        assert workers.alive({"worker": workers.me.name})
        assert not workers.alive({"worker": "other", "kernel": workers.me.kernel})
        assert workers.others() == 0
