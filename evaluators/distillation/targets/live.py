"""Targets that need no disk: the teacher runs beside the student, or there is no teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.answer import Dense
from evaluators.distillation.places import Place, states_at
from evaluators.distillation.targets.batch import Batch
from evaluators.distillation.targets.hidden import every_logit
from evaluators.huggingface.final_states import final_states


class LiveTargets:
    """The teacher runs beside the student: no disk, nearly twice the work."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        tokens: Tensor,
        places: Sequence[Place] = (),
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

    def answer(self, *said: Tensor) -> Dense:
        """See ``Targets``."""
        return every_logit(self.teacher, said[0])


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
