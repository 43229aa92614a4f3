"""Training whose last steps read longer blocks, so that a student keeps the teacher's long context.

NVIDIA's recipes for students with long context end on longer sequences, at the same tokens a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import Batch, Predictions, Targets


class LongTail:
    """Targets of short blocks, and of long ones for the last steps of each training.

    Args:
        short: for all steps before.
        long: for the last ones; its blocks are a whole number of times as long.
        share: of the steps that are the last ones.
    """

    def __init__(self, short: Targets, long: Targets, share: float) -> None:
        self.short, self.long, self.share = short, long, share
        self.tokens, self.learnt = short.tokens, short.learnt

    @property
    def blocks(self) -> int:
        """See ``Targets``: the short ones."""
        return self.short.blocks

    @property
    def head_of(self) -> PreTrainedModel | None:
        """The model whose head turns final states into logits; None if not all blocks have final states."""
        return getattr(self.short, "head_of", None)

    def on_device(self) -> AbstractContextManager[None]:
        """See ``Targets``: what both need."""
        return self._both_on_device()

    @contextmanager
    def _both_on_device(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.short.on_device())
            stack.enter_context(self.long.on_device())
            yield

    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``: of the short blocks."""
        return self.short.batch(numbers)

    def predictions(self, *targets: Tensor) -> Predictions | None:
        """See ``Targets``; final states are a single tensor, whichever blocks they are of."""
        return self.long.predictions(*targets) if len(targets) == 1 else self.short.predictions(*targets)

    def first_long_step(self, schedule: Schedule) -> int:
        """Return the first of the last steps, of which there is at least one."""
        return schedule.steps - min(schedule.steps, max(1, round(self.share * schedule.steps)))


def blocks_of_step(targets: Targets, step: int, schedule: Schedule) -> tuple[Targets, Tensor]:
    """Return the targets that a step reads, and the numbers of its blocks.

    Args:
        targets: of the training.
        step: from 0.
        schedule: of the training; a step of long blocks has as many tokens as the others.
    """
    blocks = schedule.blocks
    if isinstance(targets, LongTail):
        first = targets.first_long_step(schedule)
        targets, step = (targets.short, step) if step < first else (targets.long, step - first)
        blocks = schedule.tokens_per_step // targets.tokens.shape[1]
    return targets, torch.arange(step * blocks, (step + 1) * blocks) % targets.blocks
