"""The searches of the acceptance on a GPU: processes that end in time, and runs that are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from studies.gpu import parity
from studies.gpu import search as real_search
from studies.gpu.bench import Bench
from studies.gpu.commands import Ended, run_commands
from studies.gpu.findings import Findings
from studies.gpu.parity import SearchFailedError, check_ended, compared
from studies.gpu.shapes import TOY
from tests.search.conftest import small_flags, small_run, stories

__all__ = ["small_flags", "small_run", "stories"]


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    return Findings(tmp_path / "figures.json", {"device": "none"})


@pytest.fixture
def bench(findings: Findings) -> Bench:
    findings.begin("memory")
    return Bench("memory", TOY, findings, 60.0, 60.0)


def test_commands_run_side_by_side_until_their_time_is_used_up(tmp_path: Path) -> None:
    say = "import sys; print('out'); print('err\\n', file=sys.stderr); sys.exit(3)"
    ended = run_commands(
        {"says": ["-c", say], "sleeps": ["-c", "import time; time.sleep(60)"]}, 2.0, tmp_path
    )
    says, sleeps = ended["says"], ended["sleeps"]
    assert (says.status, says.in_time, says.output, says.last_line) == (3, True, "out\n", "err")
    assert (sleeps.status, sleeps.in_time) == (-9, False)
    assert sleeps.seconds < 30
    with pytest.raises(SearchFailedError, match="says: exit status 3; err"):
        check_ended("says", says)
    with pytest.raises(SearchFailedError, match="sleeps: ended after"):
        check_ended("sleeps", sleeps)


@pytest.fixture
def run(small_run: Path) -> Path:
    """The directory of a finished search."""
    return small_run


def test_a_search_equals_itself(run: Path) -> None:
    found = compared(run, run)
    assert found["holds"]
    assert found["same_architectures"]
    assert found["losses"] > 4
    assert (found["largest_difference_nats"], found["units_at_the_same_rank"]) == (0.0, 1.0)


@pytest.mark.parametrize(("nats", "holds"), [(0.01, True), (-0.03, False)])
def test_losses_may_differ_by_the_tolerance(run: Path, nats: float, holds: bool, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    summary = json.loads((other / "summary.json").read_text())
    summary["promoted"][0]["loss"] += nats
    (other / "summary.json").write_text(json.dumps(summary))
    found = compared(run, other)
    assert found["largest_difference_nats"] == pytest.approx(abs(nats), abs=1e-6)
    assert found["same_architectures"]
    assert found["holds"] is holds


def test_both_searches_are_compared(bench: Bench, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def ran(commands: dict[str, list[str]], seconds: float, folder: Path) -> dict[str, Ended]:
        asked.update(commands)
        for name in commands:
            (folder / name).symlink_to(run)
        return {name: Ended(0, 7.0, True, "", "") for name in commands}

    monkeypatch.setattr(parity, "run_commands", ran)
    parity.measure_parity(bench, None)  # type: ignore[arg-type]
    [row] = bench.findings.parts["memory"]["figures"]
    assert row["holds"]
    assert (row["host_s"], row["device_s"]) == (7.0, 7.0)
    host, device = asked["host"], asked["device"]
    assert host[host.index("--device") + 1] == "cpu"
    assert device[device.index("--device") + 1] == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_search_at_hand_is_given_most_of_the_time(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"label": "h1", "loss": 2.5}
    result = {"chosen": model, "promoted": [model], "teacher": {"loss": 2.0}}
    asked: list[str] = []

    def ran(commands: dict[str, list[str]], seconds: float, folder: Path) -> dict[str, Ended]:
        asked.extend(commands["search"])
        return {"search": Ended(0, 40.0, True, json.dumps(result), "")}

    tried = pd.DataFrame(
        {"rung": [0, 0, 1], "label": ["a", "b", "a"], "state": ["complete", "failed", "complete"]}
    )
    monkeypatch.setattr(real_search, "run_commands", ran)
    monkeypatch.setattr(real_search, "trials", lambda run: tried)
    real_search.measure_search(bench, tmp_path / "teacher", tmp_path / "text.jsonl")
    [row] = bench.findings.parts["memory"]["figures"]
    assert row["asked_s"] == pytest.approx(0.85 * 60, rel=0.05)
    assert row["ratio"] == pytest.approx(40 / row["asked_s"], rel=1e-4)
    counts = (row["candidates_scored"], row["candidates_distilled"], row["candidates_failed"])
    assert counts == (2, 1, 1)
    assert (row["chosen"], row["chosen_loss"], row["models_retrained"]) == ("h1", 2.5, 1)
    assert float(asked[asked.index("--hours") + 1]) == pytest.approx(0.85 / 60, rel=0.05)
