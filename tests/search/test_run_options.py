"""A run that corrects its teacher and goes on from branches, killed where only these are at work."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evaluators.metrics.loss import validation_loss
from search.runs.summary import check
from tests.search.runner import Runner, without_times

OPTIONS = (
    *("--correct-teacher", "16k", "--schedule", "wsd", "--basis", "coordinate", "--dtype", "float32"),
    *("--trials", "3", "--promote", "1", "--objectives", "loss,parameters", "--retrain-baselines", "False"),
)


def told(runner: Runner) -> dict[str, Any]:
    summary = without_times(runner.summary())
    summary["teacher"]["correction"].pop("seconds")
    return summary


@pytest.mark.slow
def test_killed_in_the_correction_and_at_branches_it_ends_in_the_same_summary(
    tmp_path_factory: pytest.TempPathFactory, real: Path, small_flags: list[str]
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    calm, killed = (
        Runner(tmp_path_factory.mktemp(name), [*small_flags, *OPTIONS], cache) for name in ("calm", "killed")
    )
    assert (done := calm.finish()).returncode == 0, done.stderr
    summary = calm.summary()
    check(summary)
    stages: list[Callable[[Path], bool]] = [
        lambda run: (run / "correction.safetensors").exists(),
        lambda run: any((run / "branches").glob("*-rung2.safetensors")),
    ]
    for stage in stages:
        assert killed.stop_when(stage, signal.SIGKILL) == -signal.SIGKILL
    assert (done := killed.finish()).returncode == 0, done.stderr
    assert "reusing the corrected teacher" in done.stderr
    assert told(killed) == told(calm)
    for runner in (calm, killed):
        assert not (runner.directory / "branches").exists()
        assert not list(runner.directory.glob("correction.*.*")) + list(
            runner.directory.rglob("*.checkpoint")
        )
    _agrees(calm.directory, summary, real, cache)


def _agrees(directory: Path, summary: dict[str, Any], real: Path, cache: Path) -> None:
    """The losses that the summary states of both teachers are those of the models on disk."""
    (text,) = (cache / "text").glob("*.safetensors")
    validation = load_file(text)["validation"]
    correction = summary["teacher"]["correction"]
    assert correction["loss_after"] == summary["teacher"]["loss"] < correction["loss_before"]
    stated = {
        real / "stories260K": correction["loss_before"],
        directory / "teacher": correction["loss_after"],
    }
    for path, loss in stated.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        assert validation_loss(model, validation) == pytest.approx(loss, abs=1e-5)
    assert summary["tokens"]["teacher_correction"] == correction["tokens"]
    short = sum(trial["tokens"] for trial in summary["trials"])
    assert summary["tokens"]["short_distillation"] < short, "what branches spare is not counted"
