"""Targets that the teacher's final states give, kept or as it runs beside the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.states import StatePlace, states_at
from evaluators.distillation.targets.batch import Batch, Dense, FormName
from evaluators.huggingface.final_states import final_states, head_dtype, logits_of


class Hidden:
    """Final states, two bytes a number.

    Args:
        teacher: whose head is applied.
    """

    def __init__(self, teacher: PreTrainedModel) -> None:
        self.teacher = teacher

    @property
    def description(self) -> dict[str, str | int | float]:
        """See ``Form``."""
        return {"form": FormName.HIDDEN.value}

    def record(self, final: Tensor, number: int) -> dict[str, Tensor]:
        """See ``Form``."""
        return {"final": final.to(torch.bfloat16).cpu()}

    def collate(self, records: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
        """(B, T, D) bfloat16 the final states."""
        return (torch.stack([record["final"] for record in records]),)

    def predictions(self, *targets: Tensor) -> Dense:
        """See ``Form``."""
        return teacher_logits(self.teacher, targets[0])


@torch.no_grad()
def teacher_logits(teacher: PreTrainedModel, final: Tensor) -> Dense:
    """What a teacher says of (n, D) final states; rounded ones are read in the head's precision."""
    return Dense(logits_of(teacher, final.to(head_dtype(teacher))).float())


class LiveTargets:
    """The teacher runs beside the student: no disk, nearly twice the work."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        tokens: Tensor,
        places: Sequence[StatePlace] = (),
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Let the teacher read the tokens when they are asked for.

        Args:
            teacher: in evaluation mode.
            tokens: (N, T).
            places: of intermediate states.
            precision: the context that the teacher runs in, such as ``Accelerator.autocast``.
        """
        self.teacher, self.tokens, self.places = teacher, tokens, tuple(places)
        self.precision = precision

    @property
    def blocks(self) -> int:
        """See ``Targets``."""
        return len(self.tokens)

    @property
    def head_of(self) -> PreTrainedModel:
        """Whose head makes the answers out of final states."""
        return self.teacher

    @torch.no_grad()
    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``."""
        tokens = self.tokens[numbers].to(self.teacher.device, torch.long)
        with self.precision(), states_at(self.teacher, self.places) as states:
            final = final_states(self.teacher, tokens.clamp(min=0))
        return Batch(tokens, (final,), dict(states))

    def predictions(self, *targets: Tensor) -> Dense:
        """See ``Targets``."""
        return teacher_logits(self.teacher, targets[0])


class TextTargets:
    """The text alone, for cross-entropy: nobody is asked."""

    def __init__(self, tokens: Tensor, device: torch.device) -> None:
        """Take (N, T) tokens and where the student is."""
        self.tokens, self.device = tokens, device

    @property
    def blocks(self) -> int:
        """See ``Targets``."""
        return len(self.tokens)

    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``."""
        return Batch(self.tokens[numbers].to(self.device, torch.long))

    def predictions(self, *targets: Tensor) -> None:
        """Nothing."""
