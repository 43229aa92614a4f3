"""Scores of teacher and candidates on the tasks that are objectives, on the same examples at every rung."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from evaluators.tasks.divergence import AnswerDivergence
from evaluators.tasks.examples import examples_fingerprint, subset
from evaluators.tasks.score_cache import ScoreCache
from evaluators.tasks.scores import Mean
from evaluators.tasks.task import ExampleScorer, tasks_of
from evaluators.teacher import Teacher
from search.rungs.evaluation import CandidateError
from search.settings.config import RunConfig
from search.settings.task_objectives import TaskObjective, task_objectives
from search.terminal.console import Console

_ACCURACY, _ERROR = "accuracy", "error"


@dataclass(frozen=True, eq=False)
class TaskScoring:
    """Scores models on the tasks that are objectives."""

    objectives: Sequence[TaskObjective] = ()
    scorers: Mapping[str, ExampleScorer] = field(default_factory=dict)
    """By name of the task, on its subset of examples."""
    divergences: Mapping[str, AnswerDivergence] = field(default_factory=dict)
    """By name of the task, where the divergence from the teacher is an objective."""
    head_on_device: Callable[[], AbstractContextManager[None]] | None = None
    """The context in which the teacher's head is on the device."""
    folder: Path | None = None
    """Where log-likelihoods are kept."""

    @classmethod
    def of(cls, config: RunConfig, teacher: Teacher, folder: Path, console: Console) -> TaskScoring:
        """Encode the examples, and run the teacher over the right answers where that is asked for.

        Raises:
            InputError: examples are not available.
        """
        objectives = task_objectives(config.objectives, tasks_of(config.benchmarks))
        scorers, divergences = {}, {}
        for objective in objectives:
            name, task = objective.task.name, objective.task
            examples = task.examples()
            assert examples is not None, "the objectives were checked"
            if name not in scorers:
                some = subset(examples, config.task_samples)
                scorers[name] = ExampleScorer.of(some, teacher.tokenizer, teacher.model)
                tokens = sum(len(choice.ids) for choice in scorers[name].choices)
                console.say(f"{name}: {len(some):,} of {len(examples):,} examples, {tokens:,} tokens")
            if objective.divergence:
                scorer = scorers[name]
                with teacher.on_device():
                    divergences[name] = AnswerDivergence.of(teacher.model, scorer.examples, scorer.choices)
        return cls(objectives, scorers, divergences, teacher.residence.head_on_device, folder)

    def measure(self, model: PreTrainedModel, key: str) -> tuple[dict[str, float], dict[str, float]]:
        """Return a model's objectives that are tasks, and the figures beside them, see ``task_figures``.

        Args:
            model: in evaluation mode, on the device.
            key: names the model; scores of an earlier process under the same key are not made again.

        Raises:
            CandidateError: a score is not finite.
        """
        values: dict[str, float] = {}
        details: dict[str, float] = {}
        for objective in self.objectives:
            name = objective.task.name
            if objective.divergence:
                assert self.head_on_device is not None
                with self.head_on_device():
                    found = Mean.of(self.divergences[name](model).numpy())
                values[objective.name] = found.value
            else:
                cache = self._cache(name, key)
                scores = self.scorers[name].score(model, cache=cache)
                found, accuracy = scores.margin, scores.accuracy
                values[objective.name] = -found.value
                details |= {
                    f"{name}:{_ACCURACY}": accuracy.value,
                    f"{name}:{_ACCURACY}:{_ERROR}": accuracy.error,
                }
            if not math.isfinite(found.value):
                raise CandidateError(f"the score on {objective.name} is {found.value}")
            details[f"{objective.name}:{_ERROR}"] = found.error
        return values, details

    def measured_or_said(self, model: PreTrainedModel, key: str) -> tuple[dict[str, float], dict[str, float]]:
        """Return what ``measure`` does; nothing where a score is not finite, since the model is kept."""
        try:
            return self.measure(model, key)
        except CandidateError as error:
            logging.getLogger(__name__).warning("%s", error)
            return {}, {}

    def _cache(self, task: str, key: str) -> ScoreCache | None:
        if self.folder is None:
            return None
        examples = examples_fingerprint(self.scorers[task].examples)
        return ScoreCache(self.folder / f"{task}.jsonl", f"{key} {examples}")


def task_figures(
    objectives: Sequence[TaskObjective], values: Mapping[str, float], details: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return what people read of the objectives that are tasks, for the summary.

    Args:
        objectives: the run's.
        values: of ``measure``, among other objectives.
        details: of ``measure``, among other figures.

    Returns:
        By name of the task: accuracy and mean margin or divergence, with standard errors; what was not
        measured is missing.
    """
    found: dict[str, dict[str, Any]] = {}
    for objective in objectives:
        if objective.name not in values:
            continue
        name, value = objective.task.name, values[objective.name]
        figures = found.setdefault(name, {})
        error = details.get(f"{objective.name}:{_ERROR}")
        if objective.divergence:
            figures |= {"divergence": value, "divergence_error": error}
        else:
            figures |= {
                "accuracy": details.get(f"{name}:{_ACCURACY}"),
                "accuracy_error": details.get(f"{name}:{_ACCURACY}:{_ERROR}"),
                "margin": -value,
                "margin_error": error,
            }
    return found


#: Where no objective is a task.
NO_TASKS = TaskScoring()
