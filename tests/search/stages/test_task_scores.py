"""Tasks in a run: told at every rung, kept as they come, and no example scored twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.tasks.likelihood import ChoiceBatch
from evaluators.tasks.task import ExampleScorer, benchmark, tasks_of
from search.rungs.evaluation import CandidateError
from search.runs.choice import choose_by_criteria
from search.runs.criteria import Criteria
from search.runs.saved_run import find_run
from search.runs.summary import unmet
from search.settings.command_line import read_flags
from search.settings.resolution import resolve
from search.settings.task_objectives import task_objectives
from search.stages import pipeline
from search.stages.task_scores import NO_TASKS, TaskScoring, task_figures
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from tests.small_search import SMALL, write_stories, write_teacher

WORDS = ("cat", "sat", "mat", "ate", "all", "and", "the", "on")


def write_quiz(path: Path) -> None:
    """Eight pairs of two fields, of words of the stories, and a question without one."""
    rows: list[dict[str, Any]] = [
        {"good": f"the {word} sat", "bad": f"xq {word} zz", "field": ("ends", "middles")[number % 2]}
        for number, word in enumerate(WORDS)
    ]
    rows += [{"context": "the cat", "choices": ["sat", "zzz", "q"], "answer": 0}]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiz")
    write_teacher(folder / "teacher")
    write_stories(folder / "stories.txt")
    write_quiz(folder / "quiz.jsonl")
    return folder


def searched(folder: Path, run: str, *more: str) -> dict[str, Any]:
    words = SMALL.replace("loss,parameters", "loss,quiz,quiz:kl").split()
    words += ["--budget", "60%", "--tolerance", "0.1", "--task-samples", "6", "--depth-by", "block-quiz"]
    words += ["--model", str(folder / "teacher"), "--data", str(folder / "stories.txt")]
    words += ["--benchmarks", str(folder / "quiz.jsonl"), *more]
    with torch.enable_grad():
        directory = RunDirectory(folder / run)
        return pipeline.run(resolve(read_flags(words)), directory, Console(quiet=True), "a command")


def test_a_run_is_told_of_a_task_at_every_rung(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(place / "cache"))
    summary = searched(place, "run")
    assert [one["name"] for one in summary["objectives"]] == ["loss", "quiz", "quiz:kl"]
    assert {trial["rung"] for trial in summary["trials"]} == {0, 1}
    for trial in summary["trials"]:
        figures = trial["tasks"]["quiz"]
        assert trial["objectives"]["quiz"] == -figures["margin"]
        assert trial["objectives"]["quiz:kl"] == figures["divergence"] > 0
        assert 0 <= figures["accuracy"] <= 1
        assert figures["margin_error"] > 0
    assert summary["teacher"]["objectives"]["quiz:kl"] == pytest.approx(0, abs=1e-6)
    [chosen] = summary["promoted"]
    path = place / "run" / chosen["path"]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    [task] = tasks_of([str(place / "quiz.jsonl")])
    again = benchmark(model, AutoTokenizer.from_pretrained(path), task)
    found = chosen["benchmarks"]["quiz"]
    assert found["value"] == again.value
    assert found["margin"] == pytest.approx(again.margin, rel=1e-4)
    assert set(found["fields"]) == {"ends", "middles"}
    assert found["examples"] == 9
    assert summary["teacher"]["benchmarks"]["quiz"]["kept"] in (1.0, None)

    def scored(*_: Any) -> Any:
        raise AssertionError("an example is scored twice")

    monkeypatch.setattr(ChoiceBatch, "log_likelihoods", scored)
    (place / "run" / "benchmarks.json").unlink()
    (place / "run" / "summary.json").unlink()
    repeated = searched(place, "run")
    assert repeated["trials"] == summary["trials"]
    assert repeated["promoted"][0]["benchmarks"] == chosen["benchmarks"]
    assert find_run(str(place / "run")).summary == repeated


def test_no_model_is_chosen_below_the_least_score(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSEARCH_CACHE", str(place / "cache"))
    summary = searched(place, "high", "--min", "quiz=1.5")
    assert summary["least"] == [{"name": "quiz", "least": 1.5}]
    assert summary["chosen"] is None
    assert unmet(summary).startswith("No retrained model has quiz ≥ 1.5; the best have ")
    found = choose_by_criteria(summary, Criteria())
    assert found.chosen is None
    assert found.reason.startswith("No retrained model lies within quiz ≥ 1.5; the nearest, ")
    assert "under the bound: quiz by " in found.reason
    assert choose_by_criteria(summary, Criteria(least={"quiz": 0.0})).chosen is not None


def test_without_tasks_nothing_is_measured() -> None:
    model: Any = None
    assert NO_TASKS.measure(model, "a model") == ({}, {})
    assert task_figures((), {"loss": 2.0}, {}) == {}


def test_a_score_that_is_no_number_fails_the_candidate_and_keeps_the_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [task] = tasks_of([str(place / "quiz.jsonl")])
    model = AutoModelForCausalLM.from_pretrained(place / "teacher", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    examples = task.examples()
    assert examples is not None
    scorer = ExampleScorer.of(examples, tokenizer, model)
    scoring = TaskScoring(task_objectives(("loss", "quiz"), [task]), {"quiz": scorer})
    values, details = scoring.measure(model, "a model")
    assert values["quiz"] == pytest.approx(-scorer.score(model).margin.value)
    assert details["quiz:accuracy"] == scorer.score(model).accuracy.value
    nothing = torch.full((len(scorer.choices),), math.nan, dtype=torch.float64)
    monkeypatch.setattr(ChoiceBatch, "log_likelihoods", lambda self, *_: nothing[: len(self.choices)])
    with pytest.raises(CandidateError, match="the score on quiz is nan"):
        scoring.measure(model, "a model")
    assert scoring.measured_or_said(model, "a model") == ({}, {})
