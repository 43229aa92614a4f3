"""The teacher's final states in bfloat16: the divergence is the true one, for one product with its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.answer import Dense
from evaluators.distillation.targets.form import FormName
from evaluators.huggingface.final_states import head_dtype, logits_of


class Hidden:
    """Final states, two bytes a number.

    Args:
        teacher: whose head is applied.
    """

    def __init__(self, teacher: PreTrainedModel) -> None:
        self.teacher = teacher

    @property
    def about(self) -> dict[str, str | int | float]:
        """See ``Form``."""
        return {"form": FormName.HIDDEN.value}

    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """See ``Form``."""
        return {"final": final.to(torch.bfloat16).cpu()}

    def said(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """(B, T, D) bfloat16 the final states."""
        return (torch.stack([record["final"] for record in records]),)

    def answer(self, *said: Tensor) -> Dense:
        """See ``Form``."""
        return every_logit(self.teacher, said[0])


@torch.no_grad()
def every_logit(teacher: PreTrainedModel, final: Tensor) -> Dense:
    """What a teacher says of (n, D) final states; rounded ones are read in the head's precision."""
    return Dense(logits_of(teacher, final.to(head_dtype(teacher))).float())
