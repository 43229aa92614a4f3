"""Downstream scores by the Language Model Evaluation Harness, which is installed only if asked for.

It knows the tasks, their prompts and their metrics; here a task becomes a function of a model.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from space.input_error import InputError


@dataclass(frozen=True)
class Task:
    """A task that the harness knows.

    Attributes:
        name: as the harness names it.
        folder: of tasks of one's own; then no others are known, and nothing is downloaded for their sake.
    """

    name: str
    folder: Path | None = None

    @classmethod
    def of(cls, text: str) -> Task:
        """The task of a name, or of the YAML file at a path; the harness knows it.

        Raises:
            InputError: the harness is not installed, does not know the task, or makes nothing of the file.
        """
        if Path(text).suffix not in (".yaml", ".yml"):
            check_task(text)
            return cls(text)
        path = Path(text).expanduser()
        if not path.is_file():
            raise InputError(
                "A benchmark is the name of a task or a YAML file",
                f"there is no file {text}",
                "Check the path",
            )
        known = _manager(path.parent).task_index
        names = (name for name, entry in known.items() if _same_file(entry.yaml_path, path))
        if (name := next(names, None)) is None:
            raise InputError(
                "A benchmark's file has to be YAML that names a task, as the evaluation harness reads it",
                f"{text} is none",
                "Mend it, and let its name end in .yaml",
            )
        return cls(name, path.parent)


def tasks_of(texts: Sequence[str]) -> list[Task]:
    """The tasks that were asked for, in order.

    Raises:
        InputError: the harness is not installed or does not know one, or one is named twice.
    """
    tasks = [Task.of(text) for text in texts]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError("A benchmark is named once", f"{twice!r} was given twice", "Leave one out")
    return tasks


def _same_file(one: Any, other: Path) -> bool:
    return one is not None and Path(one).resolve() == other.resolve()


@dataclass(frozen=True)
class Score:
    """What a model reached on a task, as the harness states it."""

    metric: str
    value: float
    error: float | None
    """Its standard error; None where the harness tells none."""
    higher_is_better: bool


def benchmark(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, batch: int = 16
) -> Score:
    """Score a model by the first metric of a task.

    Raises:
        InputError: the task's examples cannot be had.
        OSError: the disk is full.
    """
    harness, manager = _harness(), check_task(task.name, task.folder)
    return _score(_found(harness, model, tokenizer, task.name, manager, None, batch), task.name)


def task_scorer(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path | None = None,
    metric: str = "",
    examples: int | None = None,
    batch: int = 16,
) -> Callable[[PreTrainedModel], float]:
    """A task as a function of a model: its score, signed so that higher is better.

    Args:
        task: as the harness, or a YAML file in ``folder``, names it.
        tokenizer: of all models that will be judged.
        folder: of tasks of one's own; then no others are known, and nothing is downloaded for their sake.
        metric: which of the task's, such as ``acc_norm``; by default its first.
        examples: the first so many of the task; all by default.
        batch: examples at once.

    Raises:
        InputError: the harness is not installed, or does not know the task; later, when a model is judged:
            the task's examples cannot be had, or it has no such metric.
    """
    harness, manager = _harness(), check_task(task, folder)

    def judge(model: PreTrainedModel) -> float:
        found = _found(harness, model, tokenizer, task, manager, examples, batch)
        return score_of(found, task, metric)

    return judge


def _found(
    harness: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    manager: Any,
    examples: int | None,
    batch: int,
) -> Any:
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        lm = harness.models.huggingface.HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch, device=str(model.device)
        )
        return _evaluated(harness, lm, task, manager, examples)


def check_task(task: str, folder: Path | None = None) -> Any:
    """The harness's manager of tasks, if it knows the task.

    Args:
        task: see ``task_scorer``.
        folder: see ``task_scorer``.

    Raises:
        InputError: the harness is not installed, or does not know the task.
    """
    manager = _manager(folder)
    if task not in manager.all_tasks:
        where = "the harness has no such task" if folder is None else f"{folder} has no such task"
        raise InputError(
            "A benchmark has to be a task of the evaluation harness",
            f"{task!r}: {where}",
            "List the names with `python -m lm_eval --tasks list`",
        )
    return manager


def _manager(folder: Path | None) -> Any:
    return _harness().tasks.TaskManager(
        include_path=None if folder is None else str(folder), include_defaults=folder is None
    )


def _harness() -> Any:
    """The package, with the parts that are used."""
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(
            "Benchmarks are run by the package lm-eval",
            f"it cannot be imported ({error})",
            "Install it: pip install 'lm-eval>=0.4.13'",
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def _evaluated(harness: Any, lm: Any, task: str, manager: Any, examples: int | None) -> Any:
    """What the harness returns; it leaves the global random generators as they are."""
    try:
        return harness.simple_evaluate(
            model=lm,
            tasks=[task],
            task_manager=manager,
            limit=examples,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    except OSError as error:  # connections, missing files, and what the hub raises for both
        if error.errno == errno.ENOSPC:
            raise
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            "The examples of a benchmark have to be at hand or within reach",
            f"those of {task!r} are not ({why})",
            "Download them first, or name a task whose data_files lie on this machine",
        ) from error


def score_of(found: Any, task: str, metric: str = "") -> float:
    """The score among what ``lm_eval.simple_evaluate`` returned, signed so that higher is better.

    Args:
        found: with ``results`` and ``higher_is_better``, each by task.
        task: its name.
        metric: of the task; by default its first.

    Raises:
        InputError: there is no such metric.
    """
    score = _score(found, task, metric)
    return score.value if score.higher_is_better else -score.value


def _score(found: Any, task: str, metric: str = "") -> Score:
    """Arguments and errors as in ``score_of``."""
    better: dict[str, bool] = found["higher_is_better"][task]
    name = metric or next(iter(better))
    result: dict[str, Any] = found["results"][task]
    keys = [key for key in result if key.partition(",")[0] == name]
    if name not in better or not keys:
        raise InputError(
            "A benchmark is scored by one of its own metrics",
            f"{task!r} has {', '.join(better)}, not {name!r}",
            "Name one of these",
        )
    _, _, how = keys[0].partition(",")
    error = result.get(f"{name}_stderr,{how}")
    return Score(name, float(result[keys[0]]), error if isinstance(error, float) else None, better[name])
