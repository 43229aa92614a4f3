"""Downstream scores from the Language Model Evaluation Harness (``lm-eval``), an optional dependency.

The harness supplies tasks, prompts and metrics. Tasks that are a choice between texts become ``Example``s,
which are scored as any others are; the rest is scored by the harness itself.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.tasks.examples import Example
from evaluators.tasks.stalls import interrupted_if_silent
from space.input_error import InputError

#: Examples of a forward pass.
_BATCH = 16


@dataclass(frozen=True)
class Score:
    """A model's score on a task."""

    metric: str
    value: float
    error: float | None
    """Standard error of the value; None if the harness gives none."""
    higher_is_better: bool
    answers: Mapping[str, str] = field(default_factory=dict)
    """For a file of examples, by field, a 1 for each that is right and a 0 for each that is not."""
    margin: float | None = None
    """For a file of examples, the mean margin of the right choices, in nats."""


def harness_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    folder: Path | None = None,
    examples: int | None = None,
) -> Score:
    """Score a model by the first metric of a task, run by the harness.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        task: name of the task, in the harness or in a YAML file in ``folder``.
        folder: folder of custom tasks; if set, only these are loaded, and no built-in task is looked up.
        examples: number of examples to use, from the first; by default all.

    Raises:
        InputError: the task's examples are not available, or the harness is not installed.
        StalledError: the harness hangs.
        OSError: the disk is full.
    """
    harness, manager = _harness(), check_task(task, folder)
    return _score(_results(harness, model, tokenizer, task, manager, examples), task)


def harness_examples(task: str, folder: Path | None = None) -> list[Example] | None:
    """Return the examples of a task that is a choice between texts, as the harness writes them.

    Prompts, worked examples in them, and the space between context and choice are the harness's. In a group
    of tasks, each example's field is the name of its task.

    Args:
        task: name of the task or group.
        folder: folder of custom tasks, as in ``harness_score``.

    Returns:
        None if the task is no choice: its answers are generated, or measured as text, or an example has not
        exactly one that is right.

    Raises:
        InputError: the task's examples are not available, or the harness is not installed.
        StalledError: the harness hangs.
    """
    manager = check_task(task, folder)
    with _unreachable_told(task), interrupted_if_silent(f"the evaluation harness, loading {task!r},"):
        leaves = manager.load(task)["tasks"]
        if any(leaf.OUTPUT_TYPE != "multiple_choice" for leaf in leaves.values()):
            return None
        for leaf in leaves.values():
            leaf.build_all_requests()
    several = len(leaves) > 1
    found = [one for name, leaf in leaves.items() for one in _examples_of(leaf, name if several else "")]
    whole = [one for one in found if one is not None]
    return whole if whole and len(whole) == len(found) else None


def _examples_of(leaf: Any, field: str) -> Iterator[Example | None]:
    """Yield the examples of a task of the harness whose requests are built; None without one right choice."""
    for requests in _by_document(leaf.instances):
        document, choices = requests[0].doc, leaf.doc_to_choice(requests[0].doc)
        answer = (leaf.doc_to_text if leaf.multiple_input else leaf.doc_to_target)(document)
        if isinstance(answer, str) and answer in choices:
            answer = choices.index(answer)
        # Requests beyond the choices are those of mutual information, without the context.
        options = tuple((request.args[0], request.args[1]) for request in requests[: len(choices)])
        right = isinstance(answer, int) and 0 <= answer < len(options)
        yield Example(options, answer, field) if right else None


def _by_document(requests: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the requests of each document, in the order of its choices."""
    for _, group in groupby(requests, key=lambda request: request.doc_id):
        yield sorted(group, key=lambda request: request.idx)


def _results(
    harness: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    manager: Any,
    examples: int | None,
) -> Any:
    with interrupted_if_silent(f"the evaluation harness, at {task!r},"):
        lm = harness.models.huggingface.HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=_BATCH, device=str(model.device)
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


def task_in_file(path: Path) -> str:
    """Return the name of the task that a YAML file holds.

    Raises:
        InputError: the harness is not installed, or cannot read the file.
    """
    known = _manager(path.parent).task_index
    for name, entry in known.items():
        if entry.yaml_path is not None and Path(entry.yaml_path).resolve() == path.resolve():
            return str(name)
    raise InputError(
        "A task's file has to be YAML that names a task, as the evaluation harness reads it",
        f"{path} is none",
        "Mend it, and let its name end in .yaml",
    )


def _manager(folder: Path | None) -> Any:
    harness = _harness()
    if folder is None:
        return _built_in(harness)
    return harness.tasks.TaskManager(include_path=str(folder), include_defaults=False)


@cache
def _built_in(harness: Any) -> Any:
    """Return the manager of the harness's own tasks, which takes seconds to make and does not change."""
    return harness.tasks.TaskManager(include_path=None, include_defaults=True)


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
    with _unreachable_told(task):
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


@contextmanager
def _unreachable_told(task: str) -> Iterator[None]:
    """Within the context, what says that a task's examples cannot be had is told in one message."""
    try:
        yield
    except OSError as error:  # connection errors, missing files, and the hub's errors for both
        if error.errno == errno.ENOSPC:
            raise
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            "The examples of a benchmark have to be at hand or within reach",
            f"those of {task!r} are not ({why})",
            "Download them first, or name a task whose data_files lie on this machine",
        ) from error


def _score(results: Any, task: str) -> Score:
    """Return the first metric in the result of ``lm_eval.simple_evaluate``.

    Args:
        results: has ``results`` and ``higher_is_better``, each by task.
        task: name of the task.
    """
    better: dict[str, bool] = results["higher_is_better"][task]
    name = next(iter(better))
    result: dict[str, Any] = results["results"][task]
    key = next(key for key in result if key.partition(",")[0] == name)
    _, _, filter_name = key.partition(",")
    error = result.get(f"{name}_stderr,{filter_name}")
    return Score(name, float(result[key]), error if isinstance(error, float) else None, better[name])
