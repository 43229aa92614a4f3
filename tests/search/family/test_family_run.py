"""A family as a user runs it: killed and continued, taught both ways, and beside a run by hand."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from search.planning.messages import chosen_row
from search.runs.summary import check
from tests.search.runner import NAME, Runner, without_times

OPTIONS = (
    *("--basis", "coordinate", "--dtype", "float32", "--objectives", "loss,parameters"),
    *("--trials", "4", "--rung-tokens", "1k", "--retrain-tokens", "2k", "--promote", "1"),
    *("--retrain-baselines", "False", "--repair", "none", "--depth-by", "influence"),
)


class FamilyRunner(Runner):
    """Runs a family of two in a folder of its own, with ``family_flags``."""

    def summaries(self) -> list[dict[str, Any]]:
        """Of both runs, without times."""
        found = [
            json.loads((self.directory / one / "summary.json").read_text()) for one in ("60pct", "35pct")
        ]
        for one in found:
            check(one)
        return [without_times(one) for one in found]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


Done = tuple[FamilyRunner, str]


@pytest.fixture(scope="module")
def family_flags(small_flags: list[str]) -> list[str]:
    return [*small_flags, *OPTIONS, "--budget", "60%,35%"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, family_flags: list[str], cache: Path) -> Done:
    """A family taught by the original, and what it printed."""
    runner = FamilyRunner(tmp_path_factory.mktemp("calm"), family_flags, cache)
    done = runner.finish()
    assert done.returncode == 0, done.stderr
    return runner, done.stdout


def weights_in(directory: Path) -> dict[Path, int]:
    """When each model of a run was written."""
    found = {path: path.stat().st_mtime_ns for path in (directory / "models").rglob("*.safetensors")}
    assert found
    return found


def test_it_walks_down(calm: Done, real: Path) -> None:
    runner, out = calm
    first, second = runner.summaries()
    chosen = chosen_row(first)
    assert chosen is not None
    assert (first["name"], second["name"]) == (f"{NAME}/60pct", f"{NAME}/35pct")
    assert first["teacher"]["id"] == second["teacher"]["taught_by"] == str(real / "stories260K")
    assert first["teacher"]["taught_by"] is None
    model = Path("runs") / NAME / "60pct" / chosen["path"]
    assert second["teacher"]["id"] == str(model)
    assert second["teacher"]["parameters"] == chosen["parameters"]
    assert second["teacher"]["loss"] == pytest.approx(chosen["loss"], abs=1e-5), "the run's own teacher's"
    for summary, share in ((first, 0.6), (second, 0.35)):
        row = chosen_row(summary)
        assert row is not None
        folder = runner.folder / "runs" / summary["name"] / row["path"]
        parameters = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
        assert parameters == pytest.approx(share * 260_032, rel=0.02)
        assert f"{parameters:,}" in out
        assert "taught by" in (folder / "README.md").read_text() or summary is first


def test_what_it_cost_agrees_with_the_summaries(calm: Done) -> None:
    runner, out = calm
    about = json.loads((runner.directory / "family.json").read_text())
    for stage, summary in zip(about["stages"], runner.summaries(), strict=True):
        row = chosen_row(summary)
        assert row is not None
        assert (stage["name"], stage["model"]) == (summary["name"], row["path"])
        assert (stage["parameters"], stage["loss"]) == (row["parameters"], row["loss"])
        assert stage["search_tokens"] == summary["tokens"]["short_distillation"]
        assert stage["retraining_tokens"] == summary["tokens"]["retraining"]
        assert stage["flops"] == stage["separate_flops"], "the original taught both"
    assert (about["teacher_tokens"], about["saving"], about["taught_by"]) == (None, None, "original")
    assert "together" in out
    assert "--teacher-tokens says them" in out


@pytest.mark.slow
def test_killed_twice_in_its_second_run_it_ends_in_the_same_summaries(
    calm: Done, tmp_path: Path, family_flags: list[str], cache: Path
) -> None:
    runner = FamilyRunner(tmp_path, family_flags, cache)
    stages = [
        lambda family: (family / "35pct" / "config.toml").exists(),
        lambda family: any((family / "35pct" / "retraining").glob("*.json")),
    ]
    for stage in stages:
        assert runner.stop_when(stage, signal.SIGKILL) == -signal.SIGKILL
    done = runner.finish()
    assert done.returncode == 0, done.stderr
    assert runner.summaries() == calm[0].summaries()
    assert done.stdout == calm[1]


@pytest.mark.slow
def test_taught_by_the_previous_it_is_a_run_by_hand_after_another(
    calm: Done, tmp_path: Path, small_flags: list[str], family_flags: list[str], cache: Path
) -> None:
    """The first run is that of the other family and not done again; the second is what a user would type."""
    runner = FamilyRunner(
        tmp_path, [*family_flags, "--taught-by", "previous", "--teacher-tokens", "2B"], cache
    )
    shutil.copytree(calm[0].directory / "60pct", runner.directory / "60pct")
    before = weights_in(runner.directory / "60pct")
    done = runner.finish()
    assert done.returncode == 0, done.stderr
    assert "times what the family cost" in done.stdout
    assert weights_in(runner.directory / "60pct") == before
    _, second = runner.summaries()
    assert second["teacher"]["taught_by"] is None
    flags = [*small_flags, *OPTIONS, "--budget", str(round(0.35 * 260_032))]
    flags += ["--model", second["teacher"]["id"], "--study-name", "by-hand"]
    hand = Runner(tmp_path, flags, cache)
    done = hand.finish()
    assert done.returncode == 0, done.stderr
    by_hand = without_times(json.loads((tmp_path / "runs" / "by-hand" / "summary.json").read_text()))
    for one in (second, by_hand):
        del one["name"], one["command"]
    assert second == by_hand
    taught = calm[0].summaries()[1]
    assert taught["promoted"][0]["loss"] != second["promoted"][0]["loss"]
