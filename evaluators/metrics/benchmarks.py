"""Downstream scores from the Language Model Evaluation Harness (``lm-eval``), an optional dependency.

The harness supplies tasks, prompts and metrics; this module turns a task into a function of a model.
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
    """A task of the harness.

    Attributes:
        name: its name in the harness.
        folder: folder of custom tasks; if set, only these are loaded, and no built-in task is looked up.
    """

    name: str
    folder: Path | None = None

    @classmethod
    def of(cls, text: str) -> Task:
        """Return the task with a name, or the one defined in a YAML file.

        Raises:
            InputError: the harness is not installed, or does not know the task, or cannot read the file.
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
    """Return the tasks with these names or paths, in order.

    Raises:
        InputError: the harness is not installed, a task is unknown, or one is named twice.
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
    """A model's score on a task, as the harness reports it."""

    metric: str
    value: float
    error: float | None
    """Standard error of the value; None if the harness gives none."""
    higher_is_better: bool


def benchmark(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, batch: int = 16
) -> Score:
    """Score a model by the first metric of a task.

    Raises:
        InputError: the task's examples are not available.
        OSError: the disk is full.
    """
    harness, manager = _harness(), check_task(task.name, task.folder)
    return _score(_results(harness, model, tokenizer, task.name, manager, None, batch), task.name)


def task_scorer(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path | None = None,
    metric: str = "",
    examples: int | None = None,
    batch: int = 16,
) -> Callable[[PreTrainedModel], float]:
    """Return a function that scores a model on a task, signed so that higher is better.

    Args:
        task: name of the task, in the harness or in a YAML file in ``folder``.
        tokenizer: tokenizer of all models to be scored.
        folder: folder of custom tasks; if set, only these are loaded, and no built-in task is looked up.
        metric: a metric of the task, such as ``acc_norm``; by default its first.
        examples: number of examples to use, from the first; by default all.
        batch: examples per forward pass.

    Raises:
        InputError: the harness is not installed, or does not know the task. The returned function raises it
            if the task's examples are not available, or the task has no such metric.
    """
    harness, manager = _harness(), check_task(task, folder)

    def score(model: PreTrainedModel) -> float:
        results = _results(harness, model, tokenizer, task, manager, examples, batch)
        return score_of(results, task, metric)

    return score


def _results(
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
        return _evaluate(harness, lm, task, manager, examples)


def check_task(task: str, folder: Path | None = None) -> Any:
    """Return the harness's task manager if it knows the task; arguments as in ``task_scorer``.

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
    """Import the harness and the submodules used here."""
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


def _evaluate(harness: Any, lm: Any, task: str, manager: Any, examples: int | None) -> Any:
    """Run the harness without seeding the global random generators."""
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
    except OSError as error:  # connection errors, missing files, and the hub's errors for both
        if error.errno == errno.ENOSPC:
            raise
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            "The examples of a benchmark have to be at hand or within reach",
            f"those of {task!r} are not ({why})",
            "Download them first, or name a task whose data_files lie on this machine",
        ) from error


def score_of(results: Any, task: str, metric: str = "") -> float:
    """Return the score in the result of ``lm_eval.simple_evaluate``, signed so that higher is better.

    Args:
        results: has ``results`` and ``higher_is_better``, each by task.
        task: name of the task.
        metric: a metric of the task; by default its first.

    Raises:
        InputError: the task has no such metric.
    """
    score = _score(results, task, metric)
    return score.value if score.higher_is_better else -score.value


def _score(results: Any, task: str, metric: str = "") -> Score:
    """Return the unsigned score; arguments and errors as in ``score_of``."""
    better: dict[str, bool] = results["higher_is_better"][task]
    name = metric or next(iter(better))
    result: dict[str, Any] = results["results"][task]
    keys = [key for key in result if key.partition(",")[0] == name]
    if name not in better or not keys:
        raise InputError(
            "A benchmark is scored by one of its own metrics",
            f"{task!r} has {', '.join(better)}, not {name!r}",
            "Name one of these",
        )
    _, _, filter_name = keys[0].partition(",")
    error = result.get(f"{name}_stderr,{filter_name}")
    return Score(name, float(result[keys[0]]), error if isinstance(error, float) else None, better[name])
