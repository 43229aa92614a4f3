"""Optuna's own command line and dashboard work on the studies of a search."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from search.rungs.loop import open_rungs
from search.rungs.rung import Rung
from tests.search.synthetic import demo_space, make_search, run_config

NAMES = ["synthetic/r0", "synthetic/r1", "synthetic/r2"]


@pytest.fixture(params=["journal", pytest.param("postgresql", marks=pytest.mark.slow)])
def searched(request: pytest.FixtureRequest, quick_disk: Path) -> tuple[list[Rung], str]:
    """The rungs of a search that is over, and its storage as stock tools are told it."""
    text = stock = ""
    if request.param == "journal":
        stock = str(quick_disk / "study.journal")
    else:
        text = request.getfixturevalue("database")
        stock = text.replace("postgresql:", "postgresql+psycopg:")
    config = run_config(trials=6, rung_candidates=(3, 1), storage=text)
    rungs = open_rungs(config, demo_space(), quick_disk)
    make_search(config, demo_space(), rungs).run()
    return rungs, stock


def tool(name: str) -> str:
    """Path of a program of this environment."""
    return str(Path(sys.executable).with_name(name))


def optuna(*arguments: str) -> list[dict[str, Any]]:
    """What Optuna's command line answers."""
    command = [tool("optuna"), *arguments, "--format", "json", "--flatten"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@contextmanager
def dashboard(storage: str) -> Iterator[str]:
    """The address of a dashboard's interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [tool("optuna-dashboard"), storage, "--host", "127.0.0.1", "--port", port]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}/api/studies"
        finally:
            process.terminate()


def asked(address: str) -> dict[str, Any]:
    """What a dashboard that may still be starting answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError:
            assert time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.1)


@pytest.mark.slow
def test_stock_tools_read_the_studies(searched: tuple[list[Rung], str]) -> None:
    rungs, storage = searched
    assert {row["name"] for row in optuna("studies", "--storage", storage)} == set(NAMES)
    best = optuna("best-trials", "--storage", storage, "--study-name", NAMES[1])
    assert {row["user_attrs_label"] for row in best} == {
        trial.user_attrs["label"] for trial in rungs[1].study.best_trials
    }
    assert {row["user_attrs_label"] for row in best} <= {record.label for record in rungs[1].records()}
    assert all(row["values_loss (nats per token)"] < 5 for row in best)
    with dashboard(storage) as address:
        assert [study["study_name"] for study in asked(address)["study_summaries"]] == NAMES
