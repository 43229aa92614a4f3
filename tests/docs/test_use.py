"""The pages about use, done as they say: with a small teacher and text, and small numbers, as theirs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.pages import Follower
from tests.search.storage.postgresql import running_postgresql
from tests.small_search import SMALL, write_stories, write_teacher


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """What every page about use tells the reader to put in."""
    write_teacher(tmp_path / "teacher")
    write_stories(tmp_path / "stories.txt")
    return {"MODEL": "teacher", "DATA": "stories.txt", "BUDGET": "60%", "SMALL": SMALL}


@pytest.mark.slow
def test_the_first_model(settings: dict[str, str], tmp_path: Path) -> None:
    Follower(tmp_path, settings=settings).follow("first-model.md")
    run = tmp_path / "runs" / "first"
    assert (run / "report.html").exists()
    assert [path.name for path in run.glob("models/*/README.md")] == ["README.md"]


@pytest.mark.slow
def test_eight_gpus_as_two_workers_without_one(settings: dict[str, str], tmp_path: Path) -> None:
    Follower(tmp_path, settings=settings | {"GPUS": "0 1"}).follow("eight-gpus.md")
    assert (tmp_path / "runs" / "eight" / "summary.json").exists()


@pytest.mark.slow
def test_several_hosts_as_one_with_a_database_and_a_proxy(settings: dict[str, str], tmp_path: Path) -> None:
    with running_postgresql() as server:
        own = {"OUT": str(tmp_path / "shared"), "STORAGE": server.new_database()}
        follower = Follower(tmp_path, settings=settings | own)
        follower.follow("several-hosts.md")
        run = tmp_path / "shared" / "shared"
        assert (run / "summary.json").exists()
        assert not (run / "study.journal").exists(), "trials are in the database"
        with listening_proxy(follower, own["STORAGE"]) as port:
            of = "--model teacher --data stories.txt --budget 60% --study-name proxied"
            follower.do(f"python -m search.run {of} {SMALL} --storage grpc://127.0.0.1:{port}")
        assert (tmp_path / "runs" / "proxied" / "summary.json").exists()


def _listens(port: int) -> bool:
    with socket.socket() as knock:
        return not knock.connect_ex(("127.0.0.1", port))


@contextmanager
def listening_proxy(follower: Follower, storage: str) -> Iterator[int]:
    """The proxy that the page wrote, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "proxy.py", storage, "127.0.0.1", str(port)]
    process = subprocess.Popen(command, cwd=follower.folder, env=follower.environment)
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None, "the proxy ended"
            assert time.monotonic() < deadline, "the proxy did not start"
            time.sleep(0.2)
        yield port
    finally:
        process.kill()
        process.wait()
