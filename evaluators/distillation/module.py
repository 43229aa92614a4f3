"""The module that is trained: the student and its loss, computed without ever holding a batch's logits.

Head and loss run over slices of tokens. The gradient of a slice is computed right after its loss, so nothing
of a slice is left when the next one begins, and no product with the head is computed twice. What is kept
until the backward pass has the size of the states and of the head.

On a GPU, Liger's fused kernel replaces the slices where it applies; it comes with the extra
``slimsearch[gpu]``. Whether it applies is tested on the models, not read from their names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.efficiency import training_attention
from evaluators.distillation.losses import Loss, Term
from evaluators.distillation.states import StatesLoss, states_at
from evaluators.distillation.targets.batch import PADDING, Batch, Count, Targets
from evaluators.huggingface.final_states import (
    final_states,
    head_dtype,
    head_parameters,
    logits_of,
    states_width,
    token_slice,
    vocabulary_size,
)

#: Maps slices (n, …) to a scalar, the sum of the slice's losses.
SliceLoss = Callable[..., Tensor]


def chunked_loss(
    of_slice: SliceLoss,
    states: Tensor,
    others: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    size: int,
) -> Tensor:
    """Sum a loss over slices of tokens, with gradients for states and parameters.

    Args:
        of_slice: the loss of a slice, from (n, d) states and the slices of ``others``; it uses ``parameters``
            without being passed them.
        states: (N, d).
        others: each (N, …), without a gradient.
        parameters: all parameters of the loss, those of the head.
        size: tokens per slice.

    Returns:
        A scalar.
    """
    with_gradients = torch.is_grad_enabled()
    return _Chunked.apply(of_slice, size, len(others), with_gradients, states, *others, *parameters)  # type: ignore[no-any-return, no-untyped-call]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, of_slice: SliceLoss, size: int, others: int, needed: bool, states: Tensor, *rest: Tensor
    ) -> Tensor:
        """Compute loss and gradients slice by slice."""
        parameters = rest[others:]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        total = torch.zeros((), device=states.device)
        of_states = torch.empty_like(states)
        of_trained: list[Tensor | None] = [None for _ in trained]
        start = 0
        for some, *beside in zip(*(tensor.split(size) for tensor in (states, *rest[:others])), strict=True):
            with torch.set_grad_enabled(needed):
                some = some.detach().requires_grad_(needed)
                value = of_slice(some, *beside)
            if needed:
                first, *grads = _gradients(value, [some, *trained])
                of_states[start : start + len(some)] = 0 if first is None else first
                of_trained = [_sum(old, new) for old, new in zip(of_trained, grads, strict=True)]
            total += value.detach()
            start += len(some)
        found = iter(of_trained)
        each = [next(found) if parameter.requires_grad else None for parameter in parameters]
        ctx.gradients = (None, None, None, None, of_states, *[None] * others, *each)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients from the forward pass, times the gradient of the sum."""
        gradients, ctx.gradients = ctx.gradients, None
        return tuple(None if one is None else one.mul_(outer[0].to(one.dtype)) for one in gradients)


def _gradients(value: Tensor, of: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(value, of, allow_unused=True)


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """Add a slice's gradient; in float32, as many small terms would be lost in a sum of bfloat16."""
    if new is None:
        return old
    return new.float() if old is None else old.add_(new)


#: β of Liger's generalised Jensen-Shannon divergence for each term.
_BETA = {Term.FORWARD_KL: 0.0, Term.REVERSE_KL: 1.0, Term.JENSEN_SHANNON: 0.5}

#: Maps the student's (N, d) and the teacher's (N, D) final states and an (N,) token mask to a scalar.
Fused = Callable[[Tensor, Tensor, Tensor], Tensor]


def liger_installed() -> bool:
    """Return whether Liger can be imported."""
    return importlib.util.find_spec("liger_kernel") is not None


def fused_loss(student: PreTrainedModel, targets: Targets, loss: Loss) -> Fused | None:
    """Return Liger's loss for this student, teacher and divergence; None where it does not apply.

    It applies on CUDA, to a single divergence, if the targets are final states and both heads are one matrix
    and nothing else.

    Args:
        student: the student with its head.
        targets: the source of the batches.
        loss: the loss on the logits.
    """
    teacher: PreTrainedModel | None = getattr(targets, "head_of", None)
    if student.device.type != "cuda" or not liger_installed() or teacher is None:
        return None
    if len(loss.terms) != 1 or not loss.terms.keys() <= _BETA.keys():
        return None
    if vocabulary_size(student) != vocabulary_size(teacher):
        return None
    return fused_sum(student, teacher, loss) if is_plain_head(student) and is_plain_head(teacher) else None


@torch.no_grad()
def is_plain_head(model: PreTrainedModel) -> bool:
    """Return whether a head is one matrix, with no bias, cap or scale; tested on a few random states."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, states_width(model), generator=generator).to(head.weight)
    logits, product = logits_of(model, 10 * states), 10 * states @ head.weight.T
    return logits.shape == product.shape and torch.allclose(logits, product, rtol=1e-2, atol=1e-2)


def fused_sum(
    student: PreTrainedModel, teacher: PreTrainedModel, loss: Loss, *, compiled: bool = True
) -> Fused:
    """Return Liger's sum over tokens of a divergence, with gradients for the student's states and head.

    Args:
        student: has a plain head.
        teacher: has a plain head over the same vocabulary.
        loss: has one term: forward KL, reverse KL or Jensen-Shannon.
        compiled: whether Liger compiles its slices.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    [(term, weight)] = loss.terms.items()
    divergence = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=weight * loss.temperature**2,
        beta=_BETA[term],
        ignore_index=PADDING,
        temperature=loss.temperature,
        compiled=compiled,
        chunk_size=token_slice(vocabulary_size(student)),
    )

    def of(states: Tensor, final: Tensor, mask: Tensor) -> Tensor:
        labels = torch.where(mask, 0, PADDING)
        mean: Tensor = divergence(
            states, _weight(student), final.to(head_dtype(teacher)), _weight(teacher).detach(), labels
        )
        return mean * mask.sum()

    return of


def _weight(model: PreTrainedModel) -> Tensor:
    weight: Tensor = model.get_output_embeddings().weight
    return weight


class Distillation(nn.Module):
    """A student and its loss.

    With intermediate states the loss is L = L_logits + α L_states, α = L_logits / L_states, so that both
    weigh the same (arXiv 2407.14679, appendix A). The ratio is that of the previous step, so a step does not
    depend on how it is split into micro-batches and over processes.
    """

    alpha: Tensor
    """α, the weight of L_states, a scalar."""
    compilable = True
    """Whether every step has the same shapes."""

    def __init__(
        self, student: PreTrainedModel, targets: Targets, loss: Loss, states: StatesLoss | None = None
    ) -> None:
        super().__init__()
        self.student, self.states = student, states
        self.loss, self.predictions = loss, targets.predictions
        self.fused = fused_loss(student, targets, loss)
        self.register_buffer("alpha", torch.ones((), device=student.device), persistent=False)

    def begin_step(self, step: int) -> None:
        """Be told which step comes next; every step trains the same student."""

    def attention(self, block: int, accelerator: Accelerator) -> AbstractContextManager[None]:
        """Return the context in which blocks of so many tokens are trained on."""
        return training_attention(self.student, block, accelerator)

    def forward(self, batch: Batch, count: Count) -> tuple[Tensor, Tensor]:
        """Return this batch's share of a step's loss, and of its L_states.

        Args:
            batch: some blocks of the step.
            count: token counts of the whole step; without any the loss is 0, and so is its gradient.

        Returns:
            Two scalars: the loss with a gradient, and L_states without one, 0 if no states are compared.
        """
        places = [] if self.states is None else self.states.states.of_student
        with states_at(self.student, places) as student_states:
            final = final_states(self.student, batch.tokens.clamp(min=0))
        loss = self.on_logits(final, batch, count)
        if self.states is None:
            return loss, loss.new_zeros(())
        states_loss = self.states(student_states, batch.states, batch.mask) / max(1, count.positions)
        return loss + self.alpha * states_loss, states_loss.detach()

    def on_logits(self, final: Tensor, batch: Batch, count: Count) -> Tensor:
        """Return the share of the loss on the logits, of the student's final states (B, T, D)."""
        if self.fused is not None:
            flat = (part.flatten(0, 1) for part in (final, batch.targets[0], batch.mask))
            return self.fused(*flat) / max(1, count.positions)

        def of_slice(states: Tensor, mask: Tensor, next_tokens: Tensor, *targets: Tensor) -> Tensor:
            logits = logits_of(self.student, states)
            distilled, predicted = self.loss.of(logits, self.predictions(*targets), next_tokens)
            of_teacher, of_text = (distilled * mask).sum(), predicted.sum()
            return of_teacher / max(1, count.positions) + of_text / max(1, count.predicted)

        parts = (final, batch.mask, batch.next_tokens, *batch.targets)
        states, *others = (part.flatten(0, 1) for part in parts)
        if batch.learnt is not None:  # both heads are spared what is not learnt
            learnt = batch.mask.flatten()
            states, *others = (part[learnt] for part in (states, *others))
        size = token_slice(vocabulary_size(self.student))
        return chunked_loss(of_slice, states, others, head_parameters(self.student), size)
