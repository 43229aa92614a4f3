"""Drawn targets are right in the mean: a test of goodness of fit, which biased ones have to fail.

Over R blocks of N draws, RN Σ (mean − p)² / p of a token's mean weights is χ² with V − 1 degrees of freedom,
and the same holds for the gradient by the student's logits, which is τ (q − weights). Summed over tokens the
statistic has the mean m = T (V − 1) and the variance 2 m; it is refused beyond m + 5 √(2 m).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from evaluators.distillation.losses import forward_kl, sparse_kl
from evaluators.distillation.targets.batch import Sparse
from evaluators.distillation.targets.sparse import Sampled, TopK, distinct_counts, draw_tokens
from evaluators.huggingface.final_states import final_states, logits_of
from tests.evaluators.tiny_models import VOCABULARY, random_tokens, tiny_model, tiny_student

T, DRAWS, TIMES = 8, 20, 400
TEMPERATURES = [1.0, 0.7, 2.0]
TEACHER = tiny_model()
TOKENS = random_tokens(1, T).long()
Answers = Callable[[float], Sparse]


@cache
def final() -> Tensor:
    """(T, D)."""
    with torch.no_grad():
        return final_states(TEACHER, TOKENS)[0]


def shares(temperature: float) -> Tensor:
    """(T, V) the teacher's distribution."""
    with torch.no_grad():
        return (logits_of(TEACHER, final()) / temperature).double().softmax(-1)


@cache
def drawn(temperature: float) -> Sparse:
    """The answers of every time one after the other, (TIMES × T, …)."""
    form = Sampled(TEACHER, temperature, DRAWS)
    said = form.collate([form.record(final(), number) for number in range(TIMES)])
    return form.predictions(*said)


def at_another_temperature(temperature: float) -> Sparse:
    return drawn(temperature * 1.1)


def without_counts(temperature: float) -> Sparse:
    """Every token that was drawn weighs the same."""
    answer = drawn(temperature)
    weights = (answer.weights > 0).float()
    return Sparse(answer.ids, weights / weights.sum(-1, keepdim=True), answer.entropy)


def most_probable(temperature: float) -> Sparse:
    form = TopK(TEACHER, temperature, 30)
    said = form.collate([form.record(final(), number) for number in range(TIMES)])
    return form.predictions(*said)


def statistic(mean: Tensor, temperature: float) -> float:
    """(T, V) means against the teacher's: standard deviations above the mean of χ²."""
    wanted = shares(temperature)
    found = float(TIMES * DRAWS * ((mean - wanted).square() / wanted).sum())
    freedom = float(T * (VOCABULARY - 1))
    return (found - freedom) / math.sqrt(2 * freedom)


def mean_target(answer: Sparse) -> Tensor:
    dense = torch.zeros(TIMES * T, VOCABULARY, dtype=torch.double)
    dense.scatter_add_(-1, answer.ids, answer.weights.double())
    return dense.view(TIMES, T, VOCABULARY).mean(0)


def student_logits() -> Tensor:
    """(T, V) with a gradient."""
    with torch.no_grad():
        return logits_of(tiny_student(), final_states(tiny_student(), TOKENS)[0]).requires_grad_()


def mean_gradient(answer: Sparse, temperature: float) -> Tensor:
    """(T, V) of the loss on drawn targets, by the student's logits."""
    logits = student_logits()
    sparse_kl(logits.repeat(TIMES, 1), answer, temperature).sum().backward()
    assert logits.grad is not None
    return logits.grad.double() / TIMES


def full_gradient(temperature: float) -> Tensor:
    logits = student_logits()
    with torch.no_grad():
        teacher = logits_of(TEACHER, final())
    forward_kl(logits, teacher, temperature).sum().backward()
    assert logits.grad is not None
    return logits.grad.double()


def target_off(answers: Answers, temperature: float) -> float:
    return statistic(mean_target(answers(temperature)), temperature)


def gradient_off(answers: Answers, temperature: float) -> float:
    apart = mean_gradient(answers(temperature), temperature) - full_gradient(temperature)
    return statistic(shares(temperature) - apart / temperature, temperature)


BIASED: list[Answers] = [at_another_temperature, without_counts, most_probable]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_in_the_mean_the_target_is_the_teachers_distribution(temperature: float) -> None:
    assert -5 < target_off(drawn, temperature) < 5


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_in_the_mean_the_gradient_is_that_of_the_whole_divergence(temperature: float) -> None:
    assert -5 < gradient_off(drawn, temperature) < 5


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("answers", BIASED)
def test_biased_targets_are_told_apart(answers: Answers, temperature: float) -> None:
    assert not -5 < target_off(answers, temperature) < 5
    assert not -5 < gradient_off(answers, temperature) < 5


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_in_the_mean_the_loss_is_the_divergence(temperature: float) -> None:
    with torch.no_grad():
        logits, teacher = student_logits(), logits_of(TEACHER, final())
        losses = sparse_kl(logits.repeat(TIMES, 1), drawn(temperature), temperature).view(TIMES, T)
        wanted = forward_kl(logits, teacher, temperature)
    error = losses.std(0) / TIMES**0.5
    assert ((losses.mean(0) - wanted).abs() < 5 * error).all()


def test_draws_depend_on_seed_and_block_alone() -> None:
    one, other = Sampled(TEACHER, draws=DRAWS), Sampled(TEACHER, draws=DRAWS, seed=1)

    def record(form: Sampled, number: int) -> list[int]:
        found = form.record(final(), number)
        return [*found["ids"].tolist(), *found["counts"].tolist()]

    assert record(one, 3) == record(Sampled(TEACHER, draws=DRAWS), 3)
    assert record(one, 3) != record(one, 4)
    assert record(one, 3) != record(other, 3)


def test_counts_fit_into_a_byte() -> None:
    """A teacher that is sure draws the same token every time."""
    sure = tiny_model()
    with torch.no_grad():
        sure.get_parameter("lm_head.weight").mul_(1000)
    record = Sampled(sure, draws=255).record(final(), 0)
    assert (record["counts"].dtype, int(record["counts"].max())) == (torch.uint8, 255)
    with pytest.raises(AssertionError, match="one byte"):
        Sampled(sure, draws=256)


def test_an_impossible_token_is_never_drawn() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    edges = torch.tensor([[0.0, 0.25, 0.5 - 1e-12, 0.5, 1 - 2**-53]], dtype=torch.double)
    assert draw_tokens(probabilities, edges).tolist() == [[1, 1, 1, 3, 3]]


def test_distinct_tokens_are_counted_row_by_row() -> None:
    ids, counts, lengths = distinct_counts(torch.tensor([[7, 2, 7, 7], [7, 7, 7, 7], [3, 1, 0, 2]]))
    assert ids.tolist() == [2, 7, 7, 0, 1, 2, 3]
    assert counts.tolist() == [1, 3, 4, 1, 1, 1, 1]
    assert lengths.tolist() == [2, 1, 4]
