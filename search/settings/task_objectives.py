"""Tasks as objectives: what a search minimises so that its students answer well.

A task is told to the search by the mean margin of its right answers with the sign turned, which moves
smoothly; people read the accuracy beside it. ``TASK:kl`` is the divergence from the teacher at the right
answers instead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from evaluators.metrics.latency import Workload
from evaluators.tasks.examples import subset
from evaluators.tasks.task import Task, tasks_of
from search.settings.objectives import OBJECTIVES, UNITS, objectives_of, read_task_bounds
from search.settings.run_time import TaskWork
from space.input_error import InputError

_KL = ":kl"
#: About what a token of a trained tokenizer stands for.
_CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class TaskObjective:
    """A task that candidates are scored by."""

    name: str
    """As an objective: that of the task, or with ``:kl`` after it."""
    task: Task

    @property
    def divergence(self) -> bool:
        """Whether it is the divergence from the teacher at the right answers, instead of the margin."""
        return self.name.endswith(_KL)


def task_objectives(objectives: Sequence[str], tasks: Sequence[Task]) -> list[TaskObjective]:
    """Return the objectives that are tasks, in order.

    Args:
        objectives: names of all objectives.
        tasks: all tasks of the run.
    """
    by_name = {task.name: task for task in tasks}
    return [TaskObjective(name, by_name[_task_of(name)]) for name in objectives if name not in UNITS]


def named_objectives(
    text: str | None, bounded: Collection[str], benchmarks: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the objectives, and all tasks of the run, those of the objectives among them.

    Args:
        text: the value of ``--objectives``, None by default.
        bounded: objectives that are bounded.
        benchmarks: the tasks that are named already.

    Raises:
        InputError: a name is unknown or repeated, or loss is missing.
    """
    tasks, texts = tasks_of(benchmarks), list(benchmarks)
    names = []
    for name in (part.strip() for part in (text or "").split(",")):
        if not name or name in UNITS:
            names.append(name)
            continue
        known = {task.name for task in tasks}
        if _task_of(name) not in known:
            _check_meant(name, known)
            tasks.append(Task.of(_task_of(name)))
            texts.append(_task_of(name))
        found = next(task for task in tasks if _task_of(name) in (task.name, str(task.path or "")))
        names.append(found.name + (_KL if name.endswith(_KL) else ""))
    own = [name for name in names if name and name not in UNITS]
    plain = objectives_of(",".join(names) if text is not None else None, bounded, own)
    return plain, tuple(dict.fromkeys(texts))


def least_scores(least: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
    """Return the least score on each task that has one.

    Args:
        least: values of ``--min``.
        tasks: all tasks of the run, as they are named.

    Raises:
        InputError: see ``read_task_bounds``.
    """
    return read_task_bounds(least, "--min", [task.name for task in tasks_of(tasks)]) if least else {}


def least_of_config(least: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """Format least scores for the configuration: ``least_scores`` parses them; arguments as there."""
    return tuple(f"{name}={score!r}" for name, score in least_scores(least, tasks).items())


def task_work(objectives: Sequence[str], texts: Sequence[str], samples: int) -> TaskWork:
    """Return what scoring takes, by the lengths of the texts; tasks that the harness scores are left out.

    Args:
        objectives: names of all objectives.
        texts: the tasks of the run, as they are named.
        samples: examples that candidates are scored by.
    """
    tasks = tasks_of(texts)
    scored = {objective.task for objective in task_objectives(objectives, tasks)}
    whole = [task for task in tasks if task.of_examples]
    return TaskWork(sum(_tokens(task, samples) for task in scored), sum(map(_tokens, whole)))


@cache
def _tokens(task: Task, samples: int | None = None) -> int:
    """Estimate the tokens of the choices of a task; each follows its context, or the beginning of a text."""
    examples = task.examples() or []
    some = examples if samples is None else subset(examples, samples)
    texts = [context + text for one in some for context, text in one.options]
    return len(texts) + round(sum(map(len, texts)) / _CHARACTERS_PER_TOKEN)


def unit_of(name: str) -> str:
    """Return the unit of an objective; margins and divergences of tasks are in nats."""
    return UNITS.get(name, "nats")


def description_of(name: str, load: Workload, samples: int) -> str:
    """Describe what an objective measures, in words.

    Args:
        name: of the objective.
        load: of latency and memory.
        samples: examples of a task.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name].describe(load)
    if name.endswith(_KL):
        return f"KL divergence from the teacher at the right answers, mean over {samples:,} examples at most"
    return (
        "log-likelihood of the best wrong answer less that of the right one, mean over "
        f"{samples:,} examples at most"
    )


def _task_of(name: str) -> str:
    return name.removesuffix(_KL)


def _check_meant(name: str, tasks: Collection[str]) -> None:
    """Check that a name is no misspelt objective, before a task of that name is looked for."""
    if near := get_close_matches(name, [*UNITS, *tasks], n=1, cutoff=0.75):
        raise InputError(
            f"Objectives are {', '.join([*UNITS, *tasks])}, and tasks",
            f"{name!r} is none of them",
            f"Did you mean {near[0]!r}",
        )


def check_tasks(
    text: str | None,
    bounded: Collection[str],
    benchmarks: Sequence[str],
    samples: int,
    least: Sequence[str] = (),
) -> None:
    """Check that the tasks of a run are there, and that those of its objectives are choices between texts.

    Args:
        text: the value of ``--objectives``, None by default.
        bounded: objectives that are bounded.
        benchmarks: the tasks that are named besides.
        samples: examples that candidates are scored by.
        least: values of ``--min``.

    Raises:
        InputError: they are not, or a least score cannot be read.
    """
    if samples < 2:
        raise InputError(
            "A task needs two examples at least, so that its score has an error",
            f"--task-samples {samples} was given",
            "Leave it out, or take 100 or more",
        )
    names, texts = named_objectives(text, bounded, benchmarks)
    least_scores(least, texts)
    for task in {objective.task for objective in task_objectives(names, tasks_of(texts))}:
        if task.examples() is None:
            raise InputError(
                "A search is told of tasks that are a choice between texts",
                f"{task.name!r} is none: its answers are generated, or several may be right",
                "Name it after --benchmarks alone, which scores the models at the end",
            )
