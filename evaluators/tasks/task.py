"""Tasks by name: of the evaluation harness, in its YAML, or a file of examples; a model's score on one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.tasks.examples import SUFFIXES, Example, read_examples
from evaluators.tasks.harness import Score, check_task, harness_examples, harness_score, task_in_file
from evaluators.tasks.likelihood import EncodedChoice, context_length, encode_choices, log_likelihoods
from evaluators.tasks.score_cache import ScoreCache
from evaluators.tasks.scores import TaskScores, task_scores
from space.input_error import InputError

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Task:
    """A task that models are scored by.

    Attributes:
        name: its name in the harness, or that of its file of examples without the suffix.
        path: its file, if it has one: examples, or YAML that the harness reads.
    """

    name: str
    path: Path | None = None

    @classmethod
    def of(cls, text: str) -> Task:
        """Return the task with a name, or the one that a file holds.

        Raises:
            InputError: the harness is needed and not installed, or does not know the task, or the file cannot
                be read.
        """
        path = Path(text).expanduser()
        if path.suffix not in (*SUFFIXES, *_YAML):
            check_task(text)
            return cls(text)
        if not path.is_file():
            raise InputError(
                "A task is one of the evaluation harness, a YAML file of its kind, or a file of examples",
                f"there is no file {text}",
                "Check the path",
            )
        if path.suffix in SUFFIXES:
            read_examples(path)
            return cls(path.stem, path)
        return cls(task_in_file(path), path)

    @property
    def folder(self) -> Path | None:
        """The folder in which the harness finds the task; None for one that it comes with."""
        return self.path.parent if self.path else None

    @property
    def version(self) -> str:
        """What tells the contents of its file from others; that of the harness's tasks is their name."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12] if self.path else "of the harness"

    @property
    def of_examples(self) -> bool:
        """Whether the file holds examples, so that the harness is not needed."""
        return self.path is not None and self.path.suffix in SUFFIXES

    def examples(self) -> list[Example] | None:
        """Return all its examples; None if it is no choice between texts, and so only the harness scores it.

        Raises:
            InputError: they are not available, or cannot be read.
        """
        if self.path is not None and self.of_examples:
            return read_examples(self.path)
        return harness_examples(self.name, self.folder)


def tasks_of(texts: Sequence[str]) -> list[Task]:
    """Return the tasks with these names or paths, in order.

    Raises:
        InputError: see ``Task.of``; or a task is named twice.
    """
    tasks = [Task.of(text) for text in texts]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError("A task is named once", f"{twice!r} was given twice", "Leave one out")
    return tasks


@dataclass(frozen=True, eq=False)
class ExampleScorer:
    """Scores models on the examples of a task, which are encoded once."""

    examples: Sequence[Example]
    choices: Sequence[EncodedChoice]

    @classmethod
    def of(
        cls, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedModel
    ) -> ExampleScorer:
        """Return the scorer of these examples for the students of a teacher.

        Raises:
            InputError: see ``encode_choices``.
        """
        return cls(examples, encode_choices(tokenizer, examples, context_length(teacher)))

    def score(
        self,
        model: PreTrainedModel,
        advance: Callable[[int], None] = lambda choices: None,
        cache: ScoreCache | None = None,
    ) -> TaskScores:
        """Return the scores of a model in evaluation mode.

        Args:
            model: the teacher, or one of its students.
            advance: called with the number of choices done, of all ``choices``.
            cache: where log-likelihoods are kept as they come.
        """
        found = log_likelihoods(model, self.choices, advance, cache)
        return task_scores(self.examples, found.tolist())


def benchmark(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    advance: Callable[[float], None] = lambda share: None,
    cache: ScoreCache | None = None,
) -> Score:
    """Score a model on a whole task: by its accuracy, or by the first metric that the harness has for it.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        task: the task.
        advance: called with the share of the examples that is done besides; at the end for the harness.
        cache: where the log-likelihoods of a file of examples are kept as they come.

    Raises:
        InputError: the task's examples are not available.
        OSError: the disk is full.
    """
    if task.path is None or not task.of_examples:
        found = harness_score(model, tokenizer, task.name, folder=task.folder)
        advance(1.0)
        return found
    scorer = ExampleScorer.of(read_examples(task.path), tokenizer, model)
    scores = scorer.score(model, lambda choices: advance(choices / len(scorer.choices)), cache)
    accuracy, margin = scores.accuracy, scores.margin
    if not math.isfinite(margin.value):
        raise ValueError(f"the scores are {margin.value}")
    return Score("acc", accuracy.value, accuracy.error, True, scores.answers(), margin.value)


def harness_judge(
    task: Task, tokenizer: PreTrainedTokenizerBase, number: int
) -> Callable[[PreTrainedModel], float]:
    """Return a function that scores models by the first metric of a task, signed so that higher is better.

    Args:
        task: a task of the harness.
        tokenizer: tokenizer of all models to be scored.
        number: how many of its examples are used, from the first.
    """

    def judge(model: PreTrainedModel) -> float:
        score = harness_score(model, tokenizer, task.name, folder=task.folder, examples=number)
        return score.value if score.higher_is_better else -score.value

    return judge
