"""What log-likelihoods of choices say of a model: accuracy, margins, and their standard errors.

The margin of an example is the log-likelihood of its right choice less that of the best wrong one, in nats.
The model is right where it is positive, so accuracy is a count of signs; the mean margin moves smoothly with
the weights, and so it is what a search is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.tasks.examples import Example


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error, s/√n."""

    value: float
    error: float
    """0 for a single value, as nothing is known of its spread."""

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Mean:
        """Return the mean of (n,) values, n at least 1."""
        number = len(values)
        error = float(values.std(ddof=1)) / math.sqrt(number) if number > 1 else 0.0
        return cls(float(values.mean()), error)


@dataclass(frozen=True, eq=False)
class TaskScores:
    """A model's scores on the examples of a task."""

    margins: NDArray[np.float64]
    """(N,) margin of each example, in nats."""
    fields: tuple[str, ...]
    """What each example is about."""

    @property
    def right(self) -> NDArray[np.float64]:
        """(N,) 1 where the right choice is the likeliest, else 0; a tie is wrong."""
        return (self.margins > 0).astype(np.float64)

    @property
    def accuracy(self) -> Mean:
        """The share of examples whose right choice is the likeliest."""
        return Mean.of(self.right)

    @property
    def margin(self) -> Mean:
        """The mean margin, in nats."""
        return Mean.of(self.margins)

    def by_field(self) -> dict[str, TaskScores]:
        """Return the scores of each field, in order of name; nothing if no example names one."""
        names = sorted(set(self.fields) - {""})
        where = np.asarray(self.fields)
        return {
            name: TaskScores(self.margins[where == name], tuple(where[where == name].tolist()))
            for name in names
        }

    def answers(self) -> dict[str, str]:
        """Return by field, in the order of the examples, 1 for each that is right and 0 for the others."""
        found: dict[str, str] = {}
        for name, right in zip(self.fields, self.right, strict=True):
            found[name] = found.get(name, "") + ("1" if right else "0")
        return found


def right_of(answers: Mapping[str, str]) -> NDArray[np.float64]:
    """Return (N,) 1 for each right answer and 0 for each wrong one, field after field in order of name."""
    bits = "".join(answers[name] for name in sorted(answers))
    return np.asarray([float(bit) for bit in bits])


def task_scores(examples: Sequence[Example], log_likelihoods: Sequence[float]) -> TaskScores:
    """Return the scores of examples.

    Args:
        examples: N examples.
        log_likelihoods: of the choices of all examples in order, in nats.
    """
    ends = np.cumsum([len(example.options) for example in examples])
    parts = np.split(np.asarray(log_likelihoods, dtype=np.float64), ends[:-1])
    margins = [_margin(part, example.answer) for part, example in zip(parts, examples, strict=True)]
    return TaskScores(np.asarray(margins), tuple(example.field for example in examples))


def _margin(log_likelihoods: NDArray[np.float64], answer: int) -> float:
    return float(log_likelihoods[answer] - np.delete(log_likelihoods, answer).max())


def retention(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> Mean | None:
    """Return what a student keeps of the teacher's accuracy, both on the same examples, and its error.

    The standard error is that of a ratio of means of pairs, by the delta method: the examples are the same,
    so what both get right or wrong together does not count twice.

    Args:
        student: (N,) 1 where the student is right, else 0.
        teacher: (N,) the same of the teacher.

    Returns:
        None if the teacher is right nowhere.
    """
    if not teacher.any():
        return None
    ratio = float(student.mean() / teacher.mean())
    return Mean(ratio, Mean.of(student - ratio * teacher).error / float(teacher.mean()))


def examples_needed(error: float = 0.02, disagreement: float = 0.2) -> int:
    """Return how many examples tell two models apart: the difference of their accuracies has this error.

    The difference of two models on one example is 1, 0 or −1; where they disagree on a share d of the
    examples, its variance is at most d, and that of the mean d/n.

    Args:
        error: standard error of the difference of the accuracies.
        disagreement: share of the examples on which one of the two alone is right.
    """
    return math.ceil(round(disagreement / error**2, 9))
