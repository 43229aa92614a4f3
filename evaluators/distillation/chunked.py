"""Head and loss over slices of tokens, so that the logits of a batch never exist at once.

The gradient of a slice is taken as soon as its loss is known: nothing of a slice is left when the next
one begins, and no product with the head is computed twice. What is kept until the backward pass has the
size of the states and of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Of slices (n, …): a scalar, the sum of the slice's losses.
OfSlice = Callable[..., Tensor]


def chunked(
    of_slice: OfSlice,
    states: Tensor,
    others: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    size: int,
) -> Tensor:
    """The sum of a loss over slices of tokens, with the gradients of states and parameters.

    Args:
        of_slice: the loss of (n, d) states and of the slices of the others; it reads the parameters where
            they are.
        states: (N, d).
        others: each (N, …), without a gradient.
        parameters: all that the loss depends on besides, those of the head.
        size: tokens of a slice.

    Returns:
        A scalar.
    """
    needed = torch.is_grad_enabled()
    return _Chunked.apply(of_slice, size, len(others), needed, states, *others, *parameters)  # type: ignore[no-any-return, no-untyped-call]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, of_slice: OfSlice, size: int, others: int, needed: bool, states: Tensor, *rest: Tensor
    ) -> Tensor:
        """Loss and gradients, slice by slice."""
        ctx.before = 4
        parameters = rest[others:]
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        total = torch.zeros((), device=states.device)
        of_states = torch.empty_like(states)
        of_wanted: list[Tensor | None] = [None for _ in wanted]
        at = 0
        for some, *beside in zip(*(tensor.split(size) for tensor in (states, *rest[:others])), strict=True):
            with torch.set_grad_enabled(needed):
                some = some.detach().requires_grad_(needed)
                value = of_slice(some, *beside)
            if needed:
                first, *grads = _gradients(value, [some, *wanted])
                of_states[at : at + len(some)] = 0 if first is None else first
                of_wanted = [_sum(old, new) for old, new in zip(of_wanted, grads, strict=True)]
            total += value.detach()
            at += len(some)
        found = iter(of_wanted)
        each = [next(found) if parameter.requires_grad else None for parameter in parameters]
        ctx.gradients = (None, None, None, None, of_states, *[None] * others, *each)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """What was found in the forward pass, times the gradient of the sum."""
        gradients, ctx.gradients = ctx.gradients, None
        return tuple(None if one is None else one.mul_(outer[0].to(one.dtype)) for one in gradients)


def _gradients(value: Tensor, of: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(value, of, allow_unused=True)


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old.add_(new)
