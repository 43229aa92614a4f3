"""Benchmarks as a stage: every score kept as it comes, none repeated, and a failure is a result."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from evaluators.tasks.harness import Score
from evaluators.tasks.task import Task
from search.rungs.evaluation import Retrained
from search.settings.placement import Placement
from search.stages import benchmarks
from search.stages.benchmarks import Result, run_benchmarks
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.axes.architecture import Architecture
from tests.search.synthetic import run_config

SCORES = {"quiz": Score("acc", 0.25, 0.1, True), "riddle": Score("perplexity", 7.0, None, False)}
Asked = list[tuple[str, str]]


class Harness:
    """Stands in for the harness: scores by task, and takes down who was asked what."""

    def __init__(self, fails: Callable[[str, str], Exception | None] = lambda model, task: None) -> None:
        self.asked: Asked = []
        self.fails = fails

    def __call__(self, model: Any, tokenizer: Any, task: Task, advance: Any, cache: Any) -> Score:
        self.asked.append((model.name, task.name))
        if (error := self.fails(model.name, task.name)) is not None:
            raise error
        return SCORES[task.name]


def retrained(path: str | None) -> Retrained:
    return Retrained(Architecture(64, 128, 4, 2, 5), "search", 2.0, 1.0, 10, 1.0, [], path)


def run(
    folder: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch, fingerprint: str = "a teacher"
) -> benchmarks.Results:
    """With the teacher, two models, one of them in two lists, and random weights that were not kept."""
    teacher = SimpleNamespace(
        model=SimpleNamespace(name="teacher"),
        tokenizer=None,
        fingerprint=fingerprint,
        on_device=nullcontext,
    )
    config = run_config(benchmarks=tuple(SCORES))
    about = {
        "directory": folder,
        "placement": Placement(),
        "ranking": SimpleNamespace(fingerprint="a ranking"),
    }
    context = cast(RunContext, SimpleNamespace(config=config, teacher=teacher, **about))
    monkeypatch.setattr(benchmarks, "tasks_of", lambda names: [Task(name) for name in names])
    monkeypatch.setattr(benchmarks, "benchmark", harness)
    monkeypatch.setattr(
        benchmarks, "reload", lambda _, path: SimpleNamespace(name=str(path.relative_to(folder)))
    )
    models = [retrained(path) for path in ("models/a", "models/b", "models/a", None)]
    return run_benchmarks(context, models, RunDirectory(folder), Console(quiet=True))


def everything() -> Asked:
    return [(model, task) for model in ("teacher", "models/a", "models/b") for task in SCORES]


def test_teacher_and_every_model_are_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    found = run(tmp_path, harness, monkeypatch)
    assert harness.asked == everything()
    assert found == {
        model: {task: Result(score, None) for task, score in SCORES.items()}
        for model in ("teacher", "models/a", "models/b")
    }
    again = Harness()
    assert run(tmp_path, again, monkeypatch) == found
    assert again.asked == []


def test_what_was_found_before_a_kill_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(model: str, task: str) -> None:
        if (model, task) == ("models/a", "riddle"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Harness(killed), monkeypatch)
    again = Harness()
    run(tmp_path, again, monkeypatch)
    assert again.asked == everything()[3:]


def test_a_failure_is_recorded_and_tried_again_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: str, task: str) -> Exception | None:
        return ValueError("no such\nfield") if task == "quiz" else None

    harness = Harness(fails)
    found = run(tmp_path, harness, monkeypatch)
    assert harness.asked == everything(), "what comes after it is done all the same"
    assert found["teacher"]["quiz"] == Result(None, "no such field")
    assert found["teacher"]["quiz"].as_dict() == {
        "metric": None,
        "value": None,
        "error": None,
        "higher_is_better": None,
        "failure": "no such field",
    }
    again = Harness()
    found = run(tmp_path, again, monkeypatch)
    assert again.asked == [one for one in everything() if one[1] == "quiz"]
    assert found["teacher"]["quiz"] == Result(SCORES["quiz"], None)


def test_memory_that_runs_out_is_a_failure_and_a_full_disk_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(tmp_path, Harness(lambda *_: torch.OutOfMemoryError("out of memory")), monkeypatch)
    assert found["models/b"]["quiz"].failure == "out of memory"
    with pytest.raises(OSError, match="No space") as caught:
        run(tmp_path, Harness(lambda *_: OSError(errno.ENOSPC, "No space left on device")), monkeypatch)
    assert caught.value.errno == errno.ENOSPC


def test_scores_of_another_teacher_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, Harness(), monkeypatch)
    again = Harness()
    run(tmp_path, again, monkeypatch, fingerprint="another")
    assert again.asked == everything()
    assert json.loads((tmp_path / "benchmarks.json").read_text())["teacher"] == "another"


def test_what_is_kept_of_the_teachers_answers_is_said_for_each_field() -> None:
    teacher = Result(Score("acc", 0.75, 0.1, True, {"a": "1101", "b": "1110"}, 2.0), None)
    student = Result(Score("acc", 0.5, 0.1, True, {"a": "1100", "b": "0110"}, 1.0), None)
    found = student.as_dict(teacher)
    assert (found["value"], found["examples"], found["margin"]) == (0.5, 8, 1.0)
    assert found["kept"] == pytest.approx(4 / 6)
    assert found["fields"]["a"]["kept"] == found["fields"]["b"]["kept"] == pytest.approx(2 / 3)
    assert found["fields"]["a"]["kept_error"] > 0
    assert teacher.as_dict(teacher)["kept"] == 1.0
    assert teacher.as_dict(teacher)["kept_error"] == 0.0


@pytest.mark.parametrize("answers", [{}, {"a": "11"}, {"a": "11000", "b": "1110"}])
def test_nothing_is_kept_where_the_teacher_answered_other_examples(answers: dict[str, str]) -> None:
    student = Result(Score("acc", 0.5, 0.1, True, {"a": "1100", "b": "0110"}, 1.0), None)
    found = student.as_dict(Result(Score("acc", 0.5, 0.1, True, answers, None), None))
    assert (found["kept"], found["fields"]["a"]["kept"]) == (None, None)
    assert student.as_dict(None)["kept"] is None
