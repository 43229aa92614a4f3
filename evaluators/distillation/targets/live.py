"""Targets that need no disk: the teacher runs beside the student, or there is no teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.answer import Dense
from evaluators.distillation.places import Place, states_at
from evaluators.distillation.targets.batch import Batch
from evaluators.final_states import final_states, head_dtype, logits_of


class OfTeacher:
    """What all targets share that apply the teacher's head."""

    def __init__(self, teacher: PreTrainedModel, tokens: Tensor) -> None:
        self.teacher, self.tokens = teacher, tokens

    @property
    def blocks(self) -> int:
        """See ``Targets``."""
        return len(self.tokens)

    @torch.no_grad()
    def answer(self, *said: Tensor) -> Dense:
        """See ``Targets``; states that were rounded for the disk are read in the head's precision."""
        return Dense(logits_of(self.teacher, said[0].to(head_dtype(self.teacher))).float())


class LiveTargets(OfTeacher):
    """The teacher runs beside the student: no disk, nearly twice the work."""

    def __init__(self, teacher: PreTrainedModel, tokens: Tensor, places: Sequence[Place] = ()) -> None:
        """Take a teacher and (N, T) tokens; places are those of intermediate states."""
        super().__init__(teacher, tokens)
        self.places = tuple(places)

    @torch.no_grad()
    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``."""
        tokens = self.tokens[numbers].to(self.teacher.device, torch.long)
        with states_at(self.teacher, self.places) as states:
            final = final_states(self.teacher, tokens.clamp(min=0))
        return Batch(tokens, (final,), dict(states))


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

    def answer(self, *said: Tensor) -> None:
        """Nothing."""
