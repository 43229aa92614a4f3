"""Benchmarks: downstream tasks for the teacher and the retrained models; each score is saved at once."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from evaluators.huggingface.library_output import short_message
from evaluators.tasks.harness import Score
from evaluators.tasks.score_cache import ScoreCache
from evaluators.tasks.scores import Mean, retention, right_of
from evaluators.tasks.task import Task, benchmark, tasks_of
from search.rungs.evaluation import Retrained
from search.stages.retraining import reload
from search.stages.run_context import RunContext
from search.storage.run_directory import RunDirectory, atomic_write
from search.terminal.console import Console
from space.input_error import InputError

TEACHER = "teacher"
#: Into how many parts the progress on a task is divided.
_PARTS = 1000


@dataclass(frozen=True)
class Result:
    """The result of a model on a task."""

    score: Score | None
    failure: str | None
    """Why there is no score; None if there is one."""

    def __str__(self) -> str:
        return f"{self.score.metric} {self.score.value:.4f}" if self.score else f"failed: {self.failure}"

    def as_dict(self, teacher: Result | None = None) -> dict[str, Any]:
        """Return the fields of the summary.

        Args:
            teacher: the teacher's result; what is kept of its accuracy is said where the examples are known.
        """
        if self.score is None:
            nothing = {"metric": None, "value": None, "error": None, "higher_is_better": None}
            return nothing | {"failure": self.failure}
        plain = {name: getattr(self.score, name) for name in ("metric", "value", "error", "higher_is_better")}
        answers = self.score.answers
        if not answers:
            return plain | {"failure": self.failure}
        reference = teacher.score.answers if teacher and teacher.score else {}
        known = {name for name in answers if len(answers[name]) == len(reference.get(name, ""))}
        theirs = reference if known == set(answers) else None
        fields = {name: _figures({name: answers[name]}, theirs) for name in sorted(answers) if name}
        about = {"margin": self.score.margin, "fields": fields, "failure": self.failure}
        return plain | _figures(answers, theirs) | about


def _figures(answers: Mapping[str, str], teacher: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the accuracy on some answers, and what it is of the teacher's on the same examples."""
    right = right_of(answers)
    accuracy = Mean.of(right)
    kept = retention(right, right_of({name: teacher[name] for name in answers})) if teacher else None
    return {
        "value": accuracy.value,
        "error": accuracy.error,
        "examples": len(right),
        "kept": kept.value if kept else None,
        "kept_error": kept.error if kept else None,
    }


Results = dict[str, dict[str, Result]]
"""Results by model (``teacher``, or the path of a retrained model), then by task."""


def run_benchmarks(
    context: RunContext, retrained: Sequence[Retrained], directory: RunDirectory, console: Console
) -> Results:
    """Score the teacher and every written model on every task.

    Scores of earlier processes are reused. A task that fails is recorded with its reason, and tried again
    when the run is started again.

    Raises:
        OSError: the disk is full.
    """
    tasks = tasks_of(context.config.benchmarks)
    models = [TEACHER, *dict.fromkeys(result.path for result in retrained if result.path)]
    results = {model: found for model, found in _read(directory, context).items() if model in models}
    waiting = {model: [task for task in tasks if not _has_score(results, model, task)] for model in models}
    number_left = sum(map(len, waiting.values()))
    console.forecast.planned["benchmark"] = number_left * _PARTS
    for model, names in waiting.items():
        for task, result in _score_model(context, model, names, console):
            results.setdefault(model, {})[task.name] = result
            _write(directory, context, results)
    return results


def _score_model(
    context: RunContext, name: str, tasks: Sequence[Task], console: Console
) -> Iterator[tuple[Task, Result]]:
    """Score one model on tasks; it is loaded only if there are any."""
    if not tasks:
        return
    with written_model(context, name) as model:
        for task in tasks:
            with console.work(f"{task.name} on {name}", "benchmark", _PARTS) as advance:
                result = _result(context, name, model, task, advance)
            console.say(f"{task.name} on {name}: {result}")
            yield task, result


@contextmanager
def written_model(context: RunContext, name: str) -> Iterator[PreTrainedModel]:
    """Within the context, a model is on the device: the teacher by its name, a written one by its path."""
    if name != TEACHER:
        yield reload(context, context.directory / name)
        return
    if context.placement.layer_by_layer:
        raise InputError(
            "A model has to fit into memory to write text or to be scored by tasks",
            "the teacher is read layer by layer",
            "Look at the students alone",
        )
    with context.teacher.on_device():
        yield context.teacher.model


def _result(
    context: RunContext, name: str, model: PreTrainedModel, task: Task, advance: Callable[[int], None]
) -> Result:
    done = 0.0

    def told(share: float) -> None:
        nonlocal done
        before, done = done, done + share
        advance(round(done * _PARTS) - round(before * _PARTS))

    key = f"{name} {context.teacher.fingerprint} {context.ranking.fingerprint} {task.version}"
    cache = ScoreCache(RunDirectory(context.directory).tasks / f"{task.name}.jsonl", key)
    try:
        return Result(benchmark(model, context.teacher.tokenizer, task, told, cache), None)
    except Exception as error:  # third-party task code may raise anything; the models are already written
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        return Result(None, short_message(error))


def _has_score(results: Results, model: str, task: Task) -> bool:
    found = results.get(model, {}).get(task.name)
    return found is not None and found.failure is None


def _read(directory: RunDirectory, context: RunContext) -> Results:
    """Read the saved results, if they are of this teacher."""
    if not directory.benchmarks.exists():
        return {}
    saved = json.loads(directory.benchmarks.read_text())
    if saved["teacher"] != context.teacher.fingerprint:
        return {}
    return {
        model: {
            task: Result(Score(**one["score"]) if one["score"] else None, one["failure"])
            for task, one in found.items()
        }
        for model, found in saved["models"].items()
    }


def _write(directory: RunDirectory, context: RunContext, results: Results) -> None:
    models = {
        model: {task: asdict(result) for task, result in found.items()} for model, found in results.items()
    }
    saved = {"teacher": context.teacher.fingerprint, "models": models}
    atomic_write(directory.benchmarks, json.dumps(saved, indent=1))
