"""A whole run on some tokens alone: its losses are of them, and nothing is said of what is not known."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evaluators.corpus.blocks import Corpus
from evaluators.corpus.mixture import read_mixture
from evaluators.metrics.loss import validation_loss
from search.compare import main as compare
from search.settings.command_line import read_flags
from search.settings.resolution import resolve
from search.stages import pipeline
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from tests.small_search import SMALL, write_stories, write_teacher


@pytest.mark.slow
def test_a_run_is_of_what_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a third of the tokens the next one is learnt."""
    write_teacher(tmp_path / "teacher")
    write_stories(tmp_path / "stories.txt")
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(tmp_path / "cache"))

    def some_learnt(*about: Any) -> Corpus:
        corpus = read_mixture(*about)
        of_both = [tokens % 3 == 0 for tokens in (corpus.distillation, corpus.validation)]
        return replace(corpus, distillation_learnt=of_both[0], validation_learnt=of_both[1])

    monkeypatch.setattr("search.stages.text.read_mixture", some_learnt)
    directory = RunDirectory(tmp_path / "run")
    words = [*SMALL.split(), "--budget", "60%", "--targets", "hidden", "--correct-teacher", "1k"]
    words += ["--model", str(tmp_path / "teacher"), "--data", str(tmp_path / "stories.txt")]
    summary = pipeline.run(resolve(read_flags(words)), directory, Console(quiet=True), "a command")

    (text,) = (tmp_path / "cache" / "text").glob("*.safetensors")
    validation = load_file(text)["validation"]
    [chosen] = summary["promoted"]
    measured = [(directory.corrected_teacher, summary["teacher"]), (directory.path / chosen["path"], chosen)]
    for path, said in measured:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        assert said["loss"] == pytest.approx(
            validation_loss(model, validation, validation % 3 == 0), abs=1e-3
        )
        assert said["bits_per_byte"] is None
    whole = summary["corpus"]["distillation_tokens"] * 2 * 64
    assert summary["distillation"]["targets"]["retraining"]["bytes"] < 0.6 * whole
    assert "bits per byte" not in (directory.path / chosen["path"] / "README.md").read_text()
    other = shutil.copytree(directory.path, tmp_path / "other")
    assert compare([str(directory.path), str(other), "--out", str(tmp_path / "both.html")]) == 0
    assert "must not be compared" not in capsys.readouterr().out, "the same text, by its fingerprint"
