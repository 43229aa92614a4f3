"""Tasks among the objectives: how they are named, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from evaluators.metrics.latency import Workload
from evaluators.tasks.task import Task, tasks_of
from search.settings.methods import depth_task, method_of
from search.settings.run_time import TaskWork
from search.settings.task_objectives import (
    check_tasks,
    description_of,
    least_of_config,
    least_scores,
    named_objectives,
    task_objectives,
    task_work,
    unit_of,
)
from space.input_error import InputError
from tests.search.synthetic import run_config


@pytest.fixture
def quiz(tmp_path: Path) -> str:
    file = tmp_path / "quiz.jsonl"
    file.write_text("\n".join(json.dumps({"good": f"a {n}", "bad": f"b {n}"}) for n in range(4)))
    return str(file)


def test_a_task_of_the_run_is_named_without_its_path(quiz: str) -> None:
    names, texts = named_objectives("loss,quiz,latency,quiz:kl", (), [quiz])
    assert names == ("loss", "quiz", "latency", "quiz:kl")
    assert texts == (quiz,)
    found = task_objectives(names, tasks_of(texts))
    assert [(one.name, one.task.name, one.divergence) for one in found] == [
        ("quiz", "quiz", False),
        ("quiz:kl", "quiz", True),
    ]


def test_a_path_among_the_objectives_becomes_a_task_of_the_run(quiz: str) -> None:
    names, texts = named_objectives(f"loss,{quiz}:kl,{quiz}", (), [])
    assert (names, texts) == (("loss", "quiz:kl", "quiz"), (quiz,))


def test_what_scoring_takes_follows_from_the_lengths(quiz: str, tmp_path: Path) -> None:
    text = "x" * 20
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"context": text, "choices": ["a" * 7, "b" * 7, "c" * 7], "answer": 1}))
    whole = 3 + 3 * (20 + 1 + 7) // 4
    pairs = 8 + 8 * 4 // 4  # a sentence without a context begins with a space
    texts = (quiz, str(other))
    assert task_work(("loss",), texts, 2) == TaskWork(0, pairs + whole)
    assert task_work(("loss", "quiz", "quiz:kl"), texts, 2) == TaskWork(pairs // 2, pairs + whole)
    assert task_work(("loss", "other:kl"), texts, 9) == TaskWork(whole, pairs + whole)
    assert task_work(("loss",), (), 2) == TaskWork()


def test_without_tasks_nothing_changes() -> None:
    assert named_objectives(None, (), ()) == (("loss", "latency"), ())
    assert named_objectives(None, ("latency",), ()) == (("loss",), ())
    assert named_objectives("loss,memory", (), ()) == (("loss", "memory"), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "loss,latencies",
            "Objectives are loss, latency, parameters, memory, flops, quiz, and tasks; 'latencies'",
        ),
        ("loss,quizz", "Did you mean 'quiz'"),
        ("quiz", "Objectives have to name loss"),
        ("loss,quiz,quiz", "each objective once"),
        ("loss,gone.jsonl", "there is no file gone.jsonl"),
    ],
)
def test_what_is_no_objective_is_refused(text: str, message: str, quiz: str) -> None:
    with pytest.raises(InputError) as error:
        named_objectives(text, (), [quiz])
    assert message in str(error.value)


def test_a_task_of_the_harness_needs_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match="Install it"):
        named_objectives("loss,winogrande", (), [])


def test_a_task_whose_answers_are_generated_is_no_objective(
    quiz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tasks("loss,quiz", (), [quiz], 500)
    monkeypatch.setattr(Task, "examples", lambda self: None)
    check_tasks("loss", (), [quiz], 500)
    with pytest.raises(InputError, match="'quiz' is none: its answers are generated"):
        check_tasks("loss,quiz", (), [quiz], 500)


@pytest.mark.parametrize("samples", [-1, 0, 1])
def test_one_example_has_no_error(samples: int) -> None:
    with pytest.raises(InputError, match=f"--task-samples {samples} was given"):
        check_tasks(None, (), (), samples)


def test_units_and_descriptions() -> None:
    load = Workload()
    assert [unit_of(name) for name in ("loss", "memory", "quiz", "quiz:kl")] == [
        "nats per token",
        "bytes",
        "nats",
        "nats",
    ]
    assert "KL divergence from the teacher" in description_of("quiz:kl", load, 500)
    assert "500 examples" in description_of("quiz", load, 500)
    assert description_of("parameters", load, 500) == "tied ones once"


@pytest.mark.parametrize(
    ("text", "depth", "greedy"),
    [
        ("quiz", "benchmark", False),
        ("block-quiz", "block-benchmark", False),
        ("greedy-quiz", "benchmark", True),
    ],
)
def test_layers_are_scored_by_a_task_of_the_run(text: str, depth: str, greedy: bool, quiz: str) -> None:
    config = run_config(depth_by=text, benchmarks=(quiz,), task_samples=3)
    method = method_of(config)
    assert (method.depth.value, method.greedy) == (depth, greedy)
    assert depth_task(config) == Task("quiz", Path(quiz))
    assert method.benchmark.startswith("quiz (3 examples, ")
    other = Path(quiz).read_text().replace("a 1", "a one")
    Path(quiz).write_text(other)
    assert method_of(config).benchmark != method.benchmark, "another file has other scores"


def test_layers_are_scored_by_a_file(quiz: str) -> None:
    assert depth_task(run_config(depth_by=f"block-{quiz}")) == Task("quiz", Path(quiz))
    assert depth_task(run_config(depth_by="greedy-perplexity")) is None


def test_the_least_score_is_on_a_task_of_the_run(quiz: str) -> None:
    assert least_scores(("quiz=0.7",), (quiz,)) == {"quiz": 0.7}
    assert least_of_config(("quiz=.70",), (quiz,)) == ("quiz=0.7",)
    assert least_scores((), (quiz,)) == {}
    with pytest.raises(InputError, match="--min bounds scores on the tasks of the run: quiz; --min blimp"):
        check_tasks(None, (), (quiz,), 500, ("blimp=1",))
