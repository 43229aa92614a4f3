"""Nested training: students are slices of shared weights, and every step trains one of them.

What one student learns is in the weights of all. Candidates are compared by the losses of their slices, and
a student that is cut from the trained weights goes on from there. The loop, its batches, checkpoints and
learning rates are those of any distillation; only the student changes from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.efficiency import eager_attention, eager_is_faster
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.targets.batch import Batch, Count, Targets
from space.axes.architecture import Architecture
from space.cutting.shared_weights import SharedWeights

Draw = Callable[[int], Architecture]
"""Returns the architecture of a step, counted from 0: the same in every process, and when it is resumed."""


class NestedDistillation(nn.Module):
    """Shared weights and the loss of the student that is drawn for a step.

    Args:
        shared: the parameters that are trained.
        draw: which student a step trains.
        targets: source of the batches.
        loss: loss on the logits. Intermediate states are not compared: students differ in width.
    """

    alpha: Tensor
    """As of ``Distillation``; it is not used."""
    states = None
    compilable = False

    def __init__(self, shared: SharedWeights, draw: Draw, targets: Targets, loss: Loss) -> None:
        super().__init__()
        self.shared, self.draw, self.targets, self.loss = shared, draw, targets, loss
        self._drawn = draw(0)
        self._eager = False
        # Not a module list: what the skeletons have for parameters are slices of the shared ones.
        self._inner: dict[Architecture, Distillation] = {}
        self.register_buffer("alpha", torch.ones(()), persistent=False)

    @property
    def student(self) -> PreTrainedModel:
        """The student of this step."""
        return self.shared.skeleton(self._drawn)

    def begin_step(self, step: int) -> None:
        """Draw the student of a step."""
        self._drawn = self.draw(step)

    @contextmanager
    def attention(self, block: int, accelerator: Accelerator) -> Iterator[None]:
        """Within the context, all students compute attention as trains the first one fastest."""
        self._eager = eager_is_faster(self.student, block, accelerator)
        try:
            yield
        finally:
            self._eager = False

    def forward(self, batch: Batch, count: Count) -> tuple[Tensor, Tensor]:
        """Return the drawn student's loss, see ``Distillation.forward``; its gradient is that of slices."""
        eager = eager_attention(self.student) if self._eager else nullcontext()
        with self.shared.as_student(self._drawn), eager:
            loss: tuple[Tensor, Tensor] = self._inner_of(self._drawn)(batch, count)
            return loss

    def _inner_of(self, architecture: Architecture) -> Distillation:
        if architecture not in self._inner:
            student = self.shared.skeleton(architecture)
            self._inner[architecture] = Distillation(student, self.targets, self.loss)
        return self._inner[architecture]
