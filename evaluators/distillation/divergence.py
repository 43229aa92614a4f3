"""What distillation lowers: the forward KL divergence between teacher and student on the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evaluators.final_states import token_slice

#: What makes logits of final states.
Head = Callable[[Tensor], Tensor]


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher ‖ student) summed over tokens, in nats, temperature 1 (arXiv 2407.14679, section 3).

    Args:
        student_logits: (N, V).
        teacher_logits: (N, V).
    """
    teacher = teacher_logits.float().log_softmax(dim=-1)
    student = student_logits.float().log_softmax(dim=-1)
    return nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)


def chunked(
    loss: Callable[[Tensor, Tensor], Tensor],
    states: Tensor,
    head: Head,
    teacher_states: Tensor,
    teacher_head: Head,
    vocabulary: int,
) -> Tensor:
    """The mean of a loss on logits over tokens; a slice's logits are made again in the backward pass.

    Args:
        loss: of (n, V) student and teacher logits, summed over tokens.
        states: (B, T, d) the student's final states.
        head: the student's; it makes (n, V) logits of (n, d) states.
        teacher_states: (B, T, D).
        teacher_head: the teacher's, of (n, D) states.
        vocabulary: V.

    Returns:
        A scalar in nats per token. Every position counts: a distribution over the next token is
        known at the last one too.
    """
    mine, theirs = states.flatten(0, 1), teacher_states.flatten(0, 1)
    size = token_slice(vocabulary)

    def of_slice(some: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher_head(targets)
        return loss(head(some), wanted)

    pairs = list(zip(mine.split(size), theirs.split(size), strict=True))
    if len(pairs) == 1:
        return of_slice(*pairs[0]) / mine.shape[0]
    total = torch.zeros((), device=mine.device)
    for some, targets in pairs:
        total = total + checkpoint(of_slice, some, targets, use_reentrant=False)
    return total / mine.shape[0]
