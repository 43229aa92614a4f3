"""Every term against the distributions of PyTorch, and its gradient against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from evaluators.distillation.losses import (
    Loss,
    Term,
    cosine,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    mse,
    reverse_kl,
    sparse_kl,
)
from evaluators.distillation.targets.batch import PADDING, Dense, Sparse
from space.input_error import InputError

VOCABULARY = 11
seeds, temperatures = st.integers(0, 10**6), st.floats(0.1, 5)


def random_logits(seed: int, tokens: int = 6, scale: float = 3.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(tokens, VOCABULARY, generator=random, dtype=torch.float64)


# Values


@given(seeds, st.floats(0.01, 30))
def test_forward_kl_is_that_of_the_distributions(seed: int, scale: float) -> None:
    student, teacher = random_logits(seed), random_logits(seed + 1, scale=scale)
    wanted = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    torch.testing.assert_close(forward_kl(student, teacher), wanted, rtol=1e-9, atol=1e-9)
    in_float32 = forward_kl(student.float(), teacher.float())
    torch.testing.assert_close(in_float32.double(), wanted, rtol=1e-5, atol=2e-5)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_forward_kl_of_two_outcomes_in_closed_form(p: float, q: float) -> None:
    teacher = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
    student = torch.tensor([[q, 1 - q]], dtype=torch.float64).log()
    wanted = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(forward_kl(student + 3, teacher - 5)) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_forward_kl_costs_where_the_student_has_no_mass_and_reverse_where_the_teacher_has_none() -> None:
    wide, narrow = torch.zeros(1, 2), torch.tensor([[0.0, -20.0]])
    assert float(forward_kl(narrow, wide)) == pytest.approx(10 - math.log(2), rel=1e-3)
    assert float(forward_kl(wide, narrow)) == pytest.approx(math.log(2), rel=1e-3)
    assert float(reverse_kl(wide, narrow)) == pytest.approx(10 - math.log(2), rel=1e-3)


@given(seeds, temperatures)
def test_the_divergences_at_a_temperature(seed: int, temperature: float) -> None:
    """τ² times the divergence of the softened distributions."""
    student, teacher = random_logits(seed), random_logits(seed + 1)
    mine = Categorical(logits=student / temperature)
    theirs = Categorical(logits=teacher / temperature)
    middle = Categorical(probs=(mine.probs + theirs.probs) / 2)
    wanted = {
        forward_kl: kl_divergence(theirs, mine),
        reverse_kl: kl_divergence(mine, theirs),
        jensen_shannon: (kl_divergence(theirs, middle) + kl_divergence(mine, middle)) / 2,
    }
    for function, value in wanted.items():
        found = function(student, teacher, temperature)
        torch.testing.assert_close(found, temperature**2 * value, rtol=1e-6, atol=1e-9)


@given(seeds)
def test_jensen_shannon_is_symmetric_and_at_most_log_2(seed: int) -> None:
    one, other = random_logits(seed, scale=20), random_logits(seed + 1, scale=20)
    torch.testing.assert_close(jensen_shannon(one, other), jensen_shannon(other, one))
    assert float(jensen_shannon(one, other).max()) <= math.log(2) + 1e-12


def test_mse_and_cosine_on_logits_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[2.0, 0.0, 1.0]])
    assert float(mse(student, teacher)) == pytest.approx((1 + 4 + 1) / 3)
    assert float(cosine(student, teacher)) == pytest.approx(1 - 4 / (3 * math.sqrt(5)))


@given(seeds)
def test_cross_entropy_is_of_the_next_token_and_nothing_without_one(seed: int) -> None:
    student, nexts = random_logits(seed), torch.tensor([3, PADDING, 0, 10, PADDING, 5])
    found = cross_entropy(student, nexts)
    for row, token in enumerate(nexts.tolist()):
        wanted = 0.0 if token == PADDING else -float(student[row].log_softmax(-1)[token])
        assert float(found[row]) == pytest.approx(wanted)


# Gradients, for every term in closed form: q the student's distribution, p the teacher's


def _divergence_gradients(student: Tensor, teacher: Tensor, tau: float) -> dict[str, Tensor]:
    q, p = (student / tau).softmax(-1), (teacher / tau).softmax(-1)
    ratio, middle = (q / p).log(), (q / ((p + q) / 2)).log()
    return {
        "forward-kl": tau * (q - p),
        "reverse-kl": tau * q * (ratio - (q * ratio).sum(-1, keepdim=True)),
        "jensen-shannon": tau * q * (middle - (q * middle).sum(-1, keepdim=True)) / 2,
    }


@given(seeds, temperatures)
def test_the_gradients_of_the_divergences_in_closed_form(seed: int, temperature: float) -> None:
    student, teacher = random_logits(seed).requires_grad_(), random_logits(seed + 1)
    wanted = _divergence_gradients(student.detach(), teacher, temperature)
    for name, function in (
        ("forward-kl", forward_kl),
        ("reverse-kl", reverse_kl),
        ("jensen-shannon", jensen_shannon),
    ):
        (found,) = torch.autograd.grad(function(student, teacher, temperature).sum(), student)
        torch.testing.assert_close(found, wanted[name], rtol=1e-5, atol=1e-8)


TERMS: dict[Term, Callable[[Tensor, Tensor], Tensor]] = {
    Term.FORWARD_KL: forward_kl,
    Term.REVERSE_KL: reverse_kl,
    Term.JENSEN_SHANNON: jensen_shannon,
    Term.MSE: mse,
    Term.COSINE: cosine,
}


@pytest.mark.parametrize("term", TERMS)
@given(seed=seeds)
def test_terms_and_gradients_are_zero_where_the_student_is_the_teacher(term: Term, seed: int) -> None:
    teacher = random_logits(seed).float()
    student = teacher.clone().requires_grad_()
    loss = TERMS[term](student, teacher).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-5
    assert float(gradient.abs().max()) < 1e-6


# A few next tokens


@given(seeds, temperatures)
def test_all_tokens_with_their_shares_are_the_whole_distribution(seed: int, temperature: float) -> None:
    student, teacher = random_logits(seed).requires_grad_(), random_logits(seed + 1)
    shares = (teacher / temperature).softmax(-1)
    entropy = torch.special.entr(shares).sum(-1)
    answer = Sparse(torch.arange(VOCABULARY).expand(6, -1), shares, entropy)
    few, whole = sparse_kl(student, answer, temperature), forward_kl(student, teacher, temperature)
    torch.testing.assert_close(few, whole, rtol=1e-6, atol=1e-9)
    grads = [torch.autograd.grad(value.sum(), student)[0] for value in (few, whole)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)


def test_a_token_named_twice_counts_twice() -> None:
    student = random_logits(0, tokens=1)
    entropy = torch.zeros(1, dtype=torch.float64)
    twice = Sparse(torch.tensor([[4, 4, 2]]), torch.tensor([[0.25, 0.25, 0.5]]).double(), entropy)
    once = Sparse(torch.tensor([[4, 2]]), torch.tensor([[0.5, 0.5]]).double(), entropy)
    torch.testing.assert_close(sparse_kl(student, twice), sparse_kl(student, once))


# Mixtures


def test_a_mixture_is_the_weighted_sum_of_its_terms() -> None:
    loss = Loss.parse("0.5*forward-kl + 2*cross-entropy+1e-1*mse+cosine", temperature=2)
    student, teacher = random_logits(0).float(), random_logits(1).float()
    nexts = torch.tensor([1, 2, 3, PADDING, 5, 6])
    said, known = loss.of(student, Dense(teacher), nexts)
    wanted = 0.5 * forward_kl(student, teacher, 2) + 0.1 * mse(student, teacher) + cosine(student, teacher)
    torch.testing.assert_close(said, wanted)
    torch.testing.assert_close(known, 2 * cross_entropy(student, nexts))


@pytest.mark.parametrize(
    ("text", "teacher", "every"),
    [
        ("forward-kl", True, False),
        ("cross-entropy", False, False),
        ("forward-kl+cross-entropy", True, False),
        ("cross-entropy+mse", True, True),
        *((str(term), True, True) for term in TERMS if term is not Term.FORWARD_KL),
    ],
)
def test_what_a_loss_needs_of_the_teacher(text: str, teacher: bool, every: bool) -> None:
    loss = Loss.parse(text)
    assert (loss.needs_teacher, loss.needs_every_logit) == (teacher, every)
    assert str(loss) == text


def test_a_loss_says_its_weights_and_temperature() -> None:
    assert (
        str(Loss.parse("0.50*forward-kl+cross-entropy", 2)) == "0.5*forward-kl+cross-entropy at temperature 2"
    )
    assert Loss.parse("forward-kl") == Loss()


@pytest.mark.parametrize(
    "text",
    ["", "kl", "forward-kl+", "forward-kl+forward-kl", "-1*mse", "0*mse", "1.2.3*mse", "mse cosine", "2mse"],
)
def test_what_is_no_loss_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"A loss is a sum of terms out of forward-kl, .*Write forward-kl"):
        Loss.parse(text)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        Loss.parse("forward-kl", temperature)
