"""Whole runs on a trained teacher: an architecture by hand, a bound that some break, one that all break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from search.run import main
from search.runs.summary import check, over_in_words
from search.settings import costs
from tests.warm_python import brief

Told = tuple[dict[str, Any], str, Path]


class Runs:
    """The command line in this process, each time with another name."""

    def __init__(self, folder: Path, real: Path, stories: Path) -> None:
        self.folder = folder
        self.command = [
            *("--budget", "60%", "--model", str(real / "stories260K"), "--data", str(stories)),
            *(
                "--trials",
                "6",
                "--rung-tokens",
                "1k",
                "--retrain-tokens",
                "1k",
                "--promote",
                "1",
                "--seed",
                "7",
            ),
            *("--basis", "coordinate", "--repair", "none", "--device", "cpu", "--dtype", "float32"),
            *("--depth-by", "influence", "--out", str(folder / "runs"), "-q"),
        ]

    def __call__(self, name: str, *more: str) -> Told:
        said = StringIO()
        with redirect_stdout(said):
            assert main([*self.command, "--study-name", name, *more]) == 0
        directory = self.folder / "runs" / name
        summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
        check(summary)
        return summary, said.getvalue(), directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, real: Path, stories: Path) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("bounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMSEARCH_CACHE", str(folder / "cache"))
        patch.setattr("search.settings.costs._WORKLOADS", brief(costs._WORKLOADS))
        yield Runs(folder, real, stories)


@pytest.fixture(scope="module")
def free(runs: Runs) -> Told:
    return runs("free", "--try", "layers=4", "mlp=131")


def by_rung(summary: dict[str, Any], rung: int) -> list[dict[str, Any]]:
    return [trial for trial in summary["trials"] if trial["rung"] == rung]


@pytest.mark.slow
def test_architectures_by_hand_are_scored_with_the_rest(free: Told) -> None:
    summary, _, directory = free
    for rung in (0, 1):
        tried = [trial for trial in by_rung(summary, rung) if trial["origin"] == "by-hand"]
        sizes = [trial["architecture"] for trial in tried]
        assert any(one["mlp"] == 131 for one in sizes), f"off the grid, at rung {rung}"
        for trial in tried:
            off = abs(trial["parameters"] / summary["budget"]["amount"] - 1)
            assert off <= summary["budget"]["tolerance"]
    assert by_rung(summary, 0)[0]["origin"] != "search"
    assert "by hand" in (directory / "report.html").read_text()


@pytest.mark.slow
def test_the_same_command_with_another_one_goes_on(runs: Runs, free: Told) -> None:
    before = free[0]
    summary, _, _ = runs("free", "--try", "mlp=129")
    known = [trial for trial in summary["trials"] if trial in before["trials"]]
    assert len(known) == len(before["trials"]), "nothing is repeated"
    added = [trial for trial in summary["trials"] if trial not in before["trials"]]
    assert {trial["origin"] for trial in added} == {"by-hand"}
    assert all(trial["architecture"]["mlp"] == 129 for trial in added)


@pytest.mark.slow
@pytest.mark.slow
def test_a_bound_that_some_break(runs: Runs, free: Told) -> None:
    known = sorted({trial["latency_ms"] for trial in by_rung(free[0], 0)})
    most = known[len(known) // 2]
    summary, said, directory = runs("bounded", "--max", f"latency={most}ms")
    assert summary["bounds"] == [{"name": "latency", "unit": "ms", "most": most}]
    assert [one["name"] for one in summary["objectives"]] == ["loss"]
    zero = by_rung(summary, 0)
    over = {trial["label"]: trial for trial in zero if trial["latency_ms"] > most}
    assert 0 < len(over) < len(zero)
    for trial in zero:
        excess = {"latency": pytest.approx(trial["latency_ms"] - most)} if trial["label"] in over else {}
        assert trial["over"] == excess
    assert not {trial["label"] for trial in by_rung(summary, 1)} & set(over)
    assert not set(summary["pareto"]) & set(over)
    within = [*summary["promoted"], *summary["baselines"]]
    chosen = next(row for row in within if row["label"] == summary["chosen"]["label"])
    assert chosen["latency_ms"] <= most
    assert all(row["latency_ms"] <= most for row in summary["promoted"])
    assert {row["origin"] for row in summary["baselines"]} >= {"uniform", "mlp-heads", "depth"}
    too_slow = [row for row in summary["baselines"] if row["label"] in over]
    assert said.count(", over the bound") == len(too_slow)
    page = (directory / "report.html").read_text()
    assert all(over_in_words(trial) in page for trial in over.values())


@pytest.mark.slow
def test_a_bound_that_all_break(runs: Runs) -> None:
    summary, said, directory = runs("hopeless", "--max", "latency=0.001ms")
    assert summary["chosen"] is None
    assert (summary["promoted"], summary["baselines"], by_rung(summary, 1)) == ([], [], [])
    fastest = min(summary["trials"], key=lambda trial: float(trial["latency_ms"]))
    assert said.startswith(
        f"No candidate lies within latency ≤ 0.001 ms; the nearest, {fastest['label']}, has "
    )
    assert f"the nearest, {fastest['label']}, has" in (directory / "report.html").read_text()
    assert summary["tokens"]["short_distillation"] == summary["tokens"]["retraining"] == 0
