"""Liger's fused head and divergence, where they apply: the same loss as ours, in fewer kernels of a GPU.

An optional extra, ``slimsearch[gpu]``. Whether it applies is seen from the models, not from their names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.losses import Loss, Term
from evaluators.distillation.targets.batch import PADDING, Targets
from evaluators.huggingface.final_states import head_dtype, logits_of, states_width, token_slice, vocabulary

#: β of the generalised Jensen-Shannon divergence.
_BETA = {Term.FORWARD_KL: 0.0, Term.REVERSE_KL: 1.0, Term.JENSEN_SHANNON: 0.5}

#: Of the student's (N, d) and the teacher's (N, D) final states and of (N,) which tokens count: a scalar.
Fused = Callable[[Tensor, Tensor, Tensor], Tensor]


def installed() -> bool:
    """Whether Liger can be imported."""
    return importlib.util.find_spec("liger_kernel") is not None


def fused(student: PreTrainedModel, targets: Targets, loss: Loss) -> Fused | None:
    """Liger's loss for this student, teacher and divergence; None where it does not apply.

    It applies on CUDA, to one divergence of weight τ², between answers made of final states, by heads that
    are a matrix and nothing else.

    Args:
        student: with its head.
        targets: of a teacher.
        loss: on the logits.
    """
    teacher: PreTrainedModel | None = getattr(targets, "head_of", None)
    if student.device.type != "cuda" or not installed() or teacher is None:
        return None
    if len(loss.terms) != 1 or not loss.terms.keys() <= _BETA.keys():
        return None
    if vocabulary(student) != vocabulary(teacher):
        return None
    return fused_sum(student, teacher, loss) if plain_head(student) and plain_head(teacher) else None


@torch.no_grad()
def plain_head(model: PreTrainedModel) -> bool:
    """Whether a head is one matrix, with no bias, cap, scale or divisor; tried on a few states."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, states_width(model), generator=generator).to(head.weight)
    wanted, found = logits_of(model, 10 * states), 10 * states @ head.weight.T
    return wanted.shape == found.shape and torch.allclose(wanted, found, rtol=1e-2, atol=1e-2)


def fused_sum(
    student: PreTrainedModel, teacher: PreTrainedModel, loss: Loss, *, compiled: bool = True
) -> Fused:
    """The sum over tokens of one divergence, by Liger; gradients reach the student's states and head.

    Args:
        student: with a plain head.
        teacher: with a plain head over the same vocabulary.
        loss: of one term out of three.
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
        chunk_size=token_slice(vocabulary(student)),
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
