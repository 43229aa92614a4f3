"""Student and loss as one module, so that wrappers for many processes see one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.chunked import chunked
from evaluators.distillation.liger import fused
from evaluators.distillation.losses import Loss
from evaluators.distillation.places import states_at
from evaluators.distillation.states import StatesLoss
from evaluators.distillation.targets.batch import Batch, Count, Targets
from evaluators.huggingface.final_states import (
    final_states,
    head_parameters,
    logits_of,
    token_slice,
    vocabulary,
)


class Distillation(nn.Module):
    """A student and what it is trained by.

    With intermediate states the loss is L = L_logits + α L_states, α = L_logits / L_states, so that both
    weigh the same (arXiv 2407.14679, appendix A). The ratio is that of the step before, which lets a step
    come out the same however it is cut into micro-batches and spread over processes.
    """

    alpha: Tensor
    """The weight of the states, a scalar."""

    def __init__(
        self, student: PreTrainedModel, targets: Targets, loss: Loss, states: StatesLoss | None = None
    ) -> None:
        super().__init__()
        self.student, self.states = student, states
        self.loss, self.answer = loss, targets.answer
        self.fused = fused(student, targets, loss)
        self.register_buffer("alpha", torch.ones((), device=student.device), persistent=False)

    def forward(self, batch: Batch, count: Count) -> tuple[Tensor, Tensor]:
        """This batch's share of a step's loss, and of its loss on the states.

        Args:
            batch: some blocks of the step.
            count: of the tokens of the whole step.

        Returns:
            Two scalars: the loss with a gradient; and L_states without one, 0 if none are compared.
        """
        places = [] if self.states is None else self.states.states.of_student
        with states_at(self.student, places) as mine:
            final = final_states(self.student, batch.tokens.clamp(min=0))
        loss = self._on_logits(final, batch, count)
        if self.states is None:
            return loss, loss.new_zeros(())
        apart = self.states(mine, batch.states, batch.mask) / count.positions
        return loss + self.alpha * apart, apart.detach()

    def _on_logits(self, final: Tensor, batch: Batch, count: Count) -> Tensor:
        if self.fused is not None:
            mine, theirs, mask = (part.flatten(0, 1) for part in (final, batch.said[0], batch.mask))
            return self.fused(mine, theirs, mask) / count.positions

        def of_slice(states: Tensor, mask: Tensor, nexts: Tensor, *said: Tensor) -> Tensor:
            logits = logits_of(self.student, states)
            everywhere, known = self.loss.of(logits, self.answer(*said), nexts)
            return (everywhere * mask).sum() / count.positions + known.sum() / max(1, count.predicted)

        others = [part.flatten(0, 1) for part in (batch.mask, batch.nexts, *batch.said)]
        head = head_parameters(self.student)
        size = token_slice(vocabulary(self.student))
        return chunked(of_slice, final.flatten(0, 1), others, head, size)
