from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from evaluators import final_states
from evaluators.distillation import divergence
from evaluators.distillation.divergence import Head, chunked, forward_kl

VOCABULARY, BATCH, BLOCK, HIDDEN, TEACHER_HIDDEN = 11, 2, 8, 5, 7


def random_logits(seed: int, tokens: int = 6, scale: float = 3.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(tokens, VOCABULARY, generator=random, dtype=torch.float64)


@given(st.integers(0, 10**6), st.floats(0.01, 30))
def test_forward_kl_is_that_of_the_distributions(seed: int, scale: float) -> None:
    student, teacher = random_logits(seed), random_logits(seed + 1, scale=scale)
    wanted = kl_divergence(Categorical(logits=teacher), Categorical(logits=student)).sum()
    torch.testing.assert_close(forward_kl(student, teacher).double(), wanted, rtol=1e-5, atol=1e-5)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_forward_kl_of_two_outcomes_in_closed_form(p: float, q: float) -> None:
    teacher = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
    student = torch.tensor([[q, 1 - q]], dtype=torch.float64).log()
    wanted = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(forward_kl(student + 3, teacher - 5)) == pytest.approx(wanted, rel=1e-4, abs=2e-6)


def test_forward_kl_is_not_the_reverse() -> None:
    """The teacher's mass where the student has none is what costs."""
    wide, narrow = torch.zeros(1, 2), torch.tensor([[0.0, -20.0]])
    assert float(forward_kl(narrow, wide)) == pytest.approx(10 - math.log(2), rel=1e-3)
    assert float(forward_kl(wide, narrow)) == pytest.approx(math.log(2), rel=1e-3)


@given(st.integers(0, 10**6))
def test_forward_kl_and_its_gradient_are_zero_where_the_student_is_the_teacher(seed: int) -> None:
    teacher = random_logits(seed).float()
    student = teacher.clone().requires_grad_()
    loss = forward_kl(student, teacher)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def leaves(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The student's states and head, which learn, and the teacher's, which do not."""
    random = torch.Generator().manual_seed(0)

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    states, head = of(BATCH, BLOCK, HIDDEN).requires_grad_(), of(VOCABULARY, HIDDEN).requires_grad_()
    return states, head, of(BATCH, BLOCK, TEACHER_HIDDEN), of(VOCABULARY, TEACHER_HIDDEN)


def head_of(weight: Tensor) -> Head:
    """A plain matrix, of (V, d)."""
    return partial(nn.functional.linear, weight=weight)


def sliced_kl(states: Tensor, head: Tensor, teacher_states: Tensor, teacher_head: Tensor) -> Tensor:
    return chunked(forward_kl, states, head_of(head), teacher_states, head_of(teacher_head), VOCABULARY)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 8, 15, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slices_change_neither_value_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype
) -> None:
    states, head, teacher_states, teacher_head = leaves(dtype)
    logits, wanted_logits = states @ head.T, teacher_states @ teacher_head.T
    whole = forward_kl(logits.flatten(0, 1), wanted_logits.flatten(0, 1)) / (BATCH * BLOCK)
    gradients = torch.autograd.grad(whole, (states, head))

    monkeypatch.setattr(divergence, "token_slice", lambda vocabulary: size)
    sliced = sliced_kl(states, head, teacher_states, teacher_head)
    torch.testing.assert_close(sliced, whole.to(sliced.dtype), rtol=1e-5, atol=0)
    for mine, wanted in zip(torch.autograd.grad(sliced, (states, head)), gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7)


def test_every_position_counts_alike() -> None:
    states, head, teacher_states, teacher_head = leaves(torch.float64)
    loss = sliced_kl(states, head, teacher_states, teacher_head)
    tokens = [
        kl_divergence(Categorical(logits=theirs @ teacher_head.T), Categorical(logits=mine @ head.T))
        for mine, theirs in zip(states.flatten(0, 1), teacher_states.flatten(0, 1), strict=True)
    ]
    torch.testing.assert_close(loss.double(), torch.stack(tokens).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [4, 16])
def test_the_loss_is_zero_where_the_student_is_the_teacher(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(divergence, "token_slice", lambda vocabulary: size)
    states, head, _, _ = leaves(torch.float32)
    loss = sliced_kl(states, head, states.detach(), head.detach())
    assert abs(loss.item()) < 1e-6
    for gradient in torch.autograd.grad(loss, (states, head)):
        assert float(gradient.abs().max()) < 1e-6


def test_logits_exist_for_one_slice_at_a_time_and_again_in_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With mixed precision too: the slices are made again in the precision that they were made in."""
    monkeypatch.setattr(divergence, "token_slice", lambda vocabulary: 5)
    seen: list[tuple[int, torch.dtype, torch.dtype]] = []

    def loss(mine: Tensor, theirs: Tensor) -> Tensor:
        seen.append((len(mine), mine.dtype, theirs.dtype))
        return forward_kl(mine, theirs)

    states, head, teacher_states, teacher_head = leaves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total = chunked(loss, states, head_of(head), teacher_states, head_of(teacher_head), VOCABULARY)
    low = torch.bfloat16
    assert seen == [(5, low, low)] * 3 + [(1, low, low)]
    total.backward()
    assert sorted(seen[4:]) == sorted(seen[:4])
    assert total.dtype == torch.float32


@given(st.integers(1, 2**25))
def test_a_slice_holds_at_most_64_mb_of_logits(vocabulary: int) -> None:
    size = final_states.token_slice(vocabulary)
    assert size >= 1
    assert size == 1 or size * vocabulary * 4 <= 64 * 2**20
    assert (size + 1) * vocabulary * 4 > 64 * 2**20


def test_the_teacher_learns_nothing() -> None:
    states, head, teacher_states, teacher_head = leaves(torch.float32)
    teacher_head.requires_grad_()
    sliced_kl(states, head, teacher_states, teacher_head).backward()
    assert head.grad is not None
    assert teacher_head.grad is None
