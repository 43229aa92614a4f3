"""Slices against the whole: the same values and gradients, and never more than a slice's logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evaluators.distillation.losses import forward_kl
from evaluators.distillation.module import SliceLoss, chunked_loss
from evaluators.huggingface import final_states

VOCABULARY, TOKENS, HIDDEN, TEACHER_HIDDEN = 11, 16, 5, 7


class Leaves:
    """The student's states and head, which learn, and the teacher's, which do not."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        random = torch.Generator().manual_seed(0)

        def of(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        self.states = of(TOKENS, HIDDEN).requires_grad_()
        self.head = nn.Parameter(of(VOCABULARY, HIDDEN))
        self.bias = nn.Parameter(of(VOCABULARY))
        self.teacher_states, self.teacher_head = of(TOKENS, TEACHER_HIDDEN), of(VOCABULARY, TEACHER_HIDDEN)

    @property
    def of_slice(self) -> SliceLoss:
        def of_slice(states: Tensor, teacher_states: Tensor) -> Tensor:
            return forward_kl(states @ self.head.T + self.bias, teacher_states @ self.teacher_head.T).sum()

        return of_slice

    def sliced(self, size: int) -> Tensor:
        return chunked_loss(self.of_slice, self.states, [self.teacher_states], [self.head, self.bias], size)

    def whole(self) -> Tensor:
        return self.of_slice(self.states, self.teacher_states)

    @property
    def learning(self) -> tuple[Tensor, ...]:
        return self.states, self.head, self.bias


@pytest.mark.parametrize("size", [1, 3, 5, 7, 8, 15, 16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slices_change_neither_value_nor_gradients(size: int, dtype: torch.dtype) -> None:
    leaves = Leaves(dtype)
    whole, sliced = 0.3 * leaves.whole(), 0.3 * leaves.sliced(size)
    torch.testing.assert_close(sliced, whole.to(sliced.dtype), rtol=1e-5, atol=0)
    wanted = torch.autograd.grad(whole, leaves.learning)
    for mine, theirs in zip(torch.autograd.grad(sliced, leaves.learning), wanted, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_are_added_to_those_that_a_tied_head_has_elsewhere() -> None:
    leaves = Leaves()
    (leaves.sliced(5) + leaves.head.square().sum()).backward()
    mine = leaves.head.grad
    leaves.head.grad = None
    (leaves.whole() + leaves.head.square().sum()).backward()
    assert mine is not None
    torch.testing.assert_close(mine, leaves.head.grad, rtol=1e-5, atol=1e-6)


def test_parameters_that_do_not_learn_get_no_gradient() -> None:
    leaves = Leaves()
    leaves.head.requires_grad_(False)
    leaves.sliced(5).backward()
    assert leaves.head.grad is None
    assert leaves.bias.grad is not None


def test_without_gradients_only_the_value_is_computed() -> None:
    leaves = Leaves()
    with torch.no_grad():
        value = leaves.sliced(5)
    assert not value.requires_grad
    torch.testing.assert_close(value, leaves.whole().detach(), rtol=1e-5, atol=0)


def test_each_slice_is_computed_once_and_in_the_precision_of_the_pass() -> None:
    leaves, seen = Leaves(), list[tuple[int, torch.dtype]]()

    def of_slice(states: Tensor, teacher_states: Tensor) -> Tensor:
        logits = states @ leaves.head.T
        seen.append((len(logits), logits.dtype))
        return forward_kl(logits.float(), teacher_states @ leaves.teacher_head.T).sum()

    with torch.autocast("cpu", torch.bfloat16):
        total = chunked_loss(of_slice, leaves.states, [leaves.teacher_states], [leaves.head], 5)
    total.backward()
    assert seen == [(5, torch.bfloat16)] * 3 + [(1, torch.bfloat16)]
    assert total.dtype == leaves.head.grad.dtype == torch.float32  # type: ignore[union-attr]


class _Largest(TorchDispatchMode):
    """Remembers the most numbers that one tensor held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for value in output if isinstance(output, tuple | list) else [output]:
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return output


@pytest.mark.parametrize("size", [1, 4, 7])
def test_no_more_logits_exist_than_those_of_a_slice(size: int) -> None:
    leaves = Leaves()
    with _Largest() as largest:
        leaves.sliced(size).backward()
    bound = max(size * VOCABULARY, TOKENS * TEACHER_HIDDEN, VOCABULARY * TEACHER_HIDDEN)
    assert largest.numbers <= bound
    with _Largest() as largest:
        leaves.whole().backward()
    assert largest.numbers == TOKENS * VOCABULARY


@given(st.integers(1, 2**25))
def test_a_slice_holds_at_most_64_mb_of_logits(vocabulary: int) -> None:
    size = final_states.token_slice(vocabulary)
    assert size >= 1
    assert size == 1 or size * vocabulary * 4 <= 64 * 2**20
    assert (size + 1) * vocabulary * 4 > 64 * 2**20
