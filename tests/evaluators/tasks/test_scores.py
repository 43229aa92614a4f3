"""Accuracy, margins, errors and what is kept, beside closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.tasks.examples import Example
from evaluators.tasks.scores import Mean, examples_needed, retention, task_scores


def _example(choices: int, answer: int, field: str = "") -> Example:
    return Example(tuple(("", str(number)) for number in range(choices)), answer, field)


def test_the_margin_is_to_the_best_wrong_choice() -> None:
    scores = task_scores([_example(2, 0, "x"), _example(3, 1, "y")], [-3.0, -5.0, -2.0, -4.0, -9.0])
    assert scores.margins.tolist() == [2.0, -2.0]
    assert scores.right.tolist() == [1.0, 0.0]
    assert (scores.accuracy.value, scores.margin.value) == (0.5, 0.0)
    assert scores.margin.error == pytest.approx(math.sqrt(8) / math.sqrt(2))
    assert {name: one.accuracy.value for name, one in scores.by_field().items()} == {"x": 1.0, "y": 0.0}


def test_a_tie_is_wrong() -> None:
    assert task_scores([_example(2, 0)], [-1.0, -1.0]).accuracy.value == 0.0


@given(st.integers(2, 400), st.data())
def test_the_error_of_an_accuracy_is_that_of_a_share(number: int, data: st.DataObject) -> None:
    """Closed form: √(p(1 − p) / (n − 1)), which lm-evaluation-harness gives as well."""
    right = data.draw(st.integers(0, number))
    found = Mean.of(np.asarray([1.0] * right + [0.0] * (number - right)))
    share = right / number
    assert found.value == pytest.approx(share)
    assert found.error == pytest.approx(math.sqrt(share * (1 - share) / (number - 1)), abs=1e-12)


def test_a_single_example_has_no_error() -> None:
    assert Mean.of(np.asarray([1.0])) == Mean(1.0, 0.0)


def test_what_is_kept_of_a_teacher_has_the_error_of_pairs() -> None:
    teacher = np.asarray([1.0, 1.0, 1.0, 1.0, 0.0])
    assert retention(teacher, teacher) == Mean(1.0, 0.0), "the same answers leave no doubt"
    kept = retention(np.asarray([1.0, 1.0, 0.0, 1.0, 0.0]), teacher)
    assert kept is not None
    assert kept.value == pytest.approx(0.75)
    residuals = np.asarray([0.25, 0.25, -0.75, 0.25, 0.0])
    assert kept.error == pytest.approx(residuals.std(ddof=1) / math.sqrt(5) / 0.8)
    assert retention(teacher, np.zeros(5)) is None


def test_the_error_of_what_is_kept_is_that_of_many_draws() -> None:
    """Oracle: the spread of the ratio over ten thousand drawn sets of examples."""
    generator = np.random.default_rng(0)
    teacher = (generator.random((10_000, 300)) < 0.8).astype(float)
    student = np.where(generator.random(teacher.shape) < 0.85, teacher, 1 - teacher)
    ratios = student.mean(1) / teacher.mean(1)
    errors = [
        found.error for s, t in zip(student[:200], teacher[:200], strict=True) if (found := retention(s, t))
    ]
    assert np.mean(errors) == pytest.approx(ratios.std(), rel=0.03)


def test_as_many_examples_as_the_difference_needs() -> None:
    assert examples_needed() == 500
    assert examples_needed(0.01, 0.2) == 2000


def test_the_difference_of_two_models_has_the_error_asked_for() -> None:
    """Oracle: drawn models that disagree on a fifth of the examples, half of it each way."""
    generator = np.random.default_rng(0)
    draws = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(20_000, examples_needed(0.02, 0.2)))
    assert draws.mean(1).std() == pytest.approx(0.02, rel=0.02)
