"""What the terminal and programs are told of a run that has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.planning.messages import result_as_dict, result_text
from search.run import main
from search.storage.run_directory import RunDirectory
from tests.search.report.sample import sample_summary
from tests.search.report.variants import VARIANTS


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The summary of every run that is started."""
    summary = sample_summary()
    monkeypatch.setattr("search.stages.pipeline.run", lambda *_: summary)
    return summary


def started(demo_config: Path, out: Path, *more: str) -> int:
    return main(["--budget", "1M", "--model", str(demo_config), "--device", "cpu", "--out", str(out), *more])


def test_json_is_one_line_on_stdout(
    demo_config: Path, tmp_path: Path, ended: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert started(demo_config, tmp_path, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["chosen"]["label"] == ended["chosen"]["label"]
    assert found["chosen"]["loss"] == ended["promoted"][0]["loss"]
    assert found["chosen"]["reason"] == ended["chosen"]["reason"]
    assert Path(found["chosen"]["path"]) == Path(found["directory"]) / ended["promoted"][0]["path"]
    assert found["teacher"]["loss"] == ended["teacher"]["loss"]
    assert [one["label"] for one in found["promoted"]] == [one["label"] for one in ended["promoted"]]
    assert len(found["baselines"]) == len(ended["baselines"])
    assert found["summary"].endswith("summary.json")
    assert "curve" not in found["chosen"]


def test_lines_without(
    demo_config: Path, tmp_path: Path, ended: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert started(demo_config, tmp_path) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"chosen   {ended['chosen']['label']} ")
    assert "\x1b" not in out


def test_a_plan_in_json_has_the_hours(
    demo_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert started(demo_config, tmp_path, "--plan", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["plan"]["budget"] == "1,000,000 parameters ±2%"
    seconds = found["seconds"]
    # Each is rounded to 0.1.
    parts = [seconds[name] for name in ("ranking", "search", "reserve", "retraining")]
    assert seconds["total"] == pytest.approx(sum(parts), abs=0.05 * (len(parts) + 1))


@pytest.mark.slow
def test_a_family_is_planned_in_one_list(
    demo_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--budget", "1.2M,800k", "--model", str(demo_config), "--plan", "--json", "--device", "cpu")
    assert main([*more, "--out", str(tmp_path)]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [one["plan"]["budget"].split()[0] for one in plans] == ["1,200,000", "800,000"]


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_summary_can_be_told(name: str, tmp_path: Path) -> None:
    summary, directory = VARIANTS[name](), RunDirectory(tmp_path)
    for number, entry in enumerate((*summary["promoted"], *summary["baselines"])):
        if entry["origin"] != "random-weights":  # of every other model a run keeps the weights
            entry["path"] = f"models/{number:02d}-{entry['label']}"
    found = result_as_dict(summary, directory)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["chosen"] is None) == (summary["chosen"] is None)
    assert result_text(summary, directory)
