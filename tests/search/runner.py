"""Whole searches as a user runs them, each in a process of its own, which may be stopped at any stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tests.warm_python import WarmPopen

NAME = "small"
ROOT = Path(__file__).parents[2]


class Runner:
    """Runs the search in a folder of its own.

    Args:
        folder: where it is called, made if it is not there.
        flags: of the search; ``small_flags`` has a name, ``NAME``, in them.
        cache: of texts and latencies.
    """

    def __init__(self, folder: Path, flags: Sequence[str], cache: Path) -> None:
        self.folder, self.directory = folder, folder / "runs" / NAME
        folder.mkdir(exist_ok=True)
        self.command = [sys.executable, "-m", "search.run", *flags]
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SLIMSEARCH_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> subprocess.Popen[str]:
        """Begin, and do not wait."""
        pipe = subprocess.PIPE
        return WarmPopen(
            self.command, cwd=self.folder, env=self.environment, text=True, stdout=pipe, stderr=pipe
        )

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        process = self.start()
        out, err = process.communicate(timeout=280)
        return subprocess.CompletedProcess(self.command, process.returncode, out, err)

    def stop_when(self, reached: Callable[[Path], bool], number: int) -> int:
        """Run until a condition on the run directory holds, then send a signal; returns the exit status."""
        process = self.start()
        deadline = time.monotonic() + 200
        while process.poll() is None and not reached(self.directory):
            assert time.monotonic() < deadline, "the stage was never reached"
            time.sleep(0.02)
        assert process.poll() is None, (
            f"the run ended before it could be stopped:\n{process.communicate()[1]}"
        )
        process.send_signal(number)
        process.communicate(timeout=60)
        return process.returncode

    def summary(self) -> dict[str, Any]:
        """The summary as written."""
        found: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return found


def finished_trials(directory: Path, rung: int) -> int:
    """How many trials of a rung are complete, read as Optuna's own tools do."""
    if not (directory / "study.journal").exists():
        return 0
    storage = JournalStorage(JournalFileBackend(str(directory / "study.journal")))
    ids = {study.study_name: study._study_id for study in storage.get_all_studies()}
    name = f"{directory.name}/r{rung}"
    return storage.get_n_trials(ids[name], TrialState.COMPLETE) if name in ids else 0


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without what a clock decides."""
    left = {key: value for key, value in summary.items() if key not in ("created", "seconds", "energy")}
    for row in (*left["promoted"], *left["baselines"]):
        row.pop("seconds")
    for row in (left["teacher"], *left["promoted"], *left["baselines"]):
        if row["breakdown"] is not None:
            row["breakdown"].pop("latency")
    return left
