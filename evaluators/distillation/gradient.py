"""The gradient of a step, over micro-batches and processes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from evaluators.distillation.module import Distillation
from evaluators.distillation.processes import anywhere, my_micro_batches
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import Count, Targets


@dataclass(frozen=True)
class Gradient:
    """Computes losses and their gradients; the blocks of a step follow from its number."""

    distillation: Distillation
    module: nn.Module
    """``distillation`` as Accelerate prepared it."""
    targets: Targets
    schedule: Schedule
    accelerator: Accelerator

    def of(self, step: int, micro: int, *, learn: bool = True) -> Tensor:
        """(2,) the loss of a step and its loss on the states, over all processes.

        Gradients are added to what is there, and exchanged with the last micro-batch.

        Args:
            step: from 0.
            micro: blocks at once.
            learn: without it there are no gradients.
        """
        numbers = self._numbers(step)
        count = Count.of(self.targets.tokens[numbers])
        totals = torch.zeros(2, device=self.accelerator.device)
        batches = my_micro_batches(numbers, micro, self.accelerator)
        for place, (some, counts) in enumerate(batches, start=1):
            alone = place < len(batches) and self.accelerator.num_processes > 1
            with self.accelerator.no_sync(self.module) if alone else nullcontext():
                totals += self._micro_batch(some, count, float(counts), learn)
        return self.accelerator.reduce(totals) if self.accelerator.num_processes > 1 else totals

    def _numbers(self, step: int) -> Tensor:
        first = step * self.schedule.blocks
        return torch.arange(first, first + self.schedule.blocks) % self.targets.blocks

    def _micro_batch(self, numbers: Tensor, count: Count, weight: float, learn: bool) -> Tensor:
        with torch.set_grad_enabled(learn):
            loss, apart = self.module(self.targets.batch(numbers), count)
        if learn:
            self.accelerator.backward(loss * (weight * self.accelerator.num_processes))
        return weight * torch.stack([loss.detach(), apart])

    def agree(self, step: int, micro: int, optimizer: torch.optim.Optimizer) -> None:
        """Of several processes, see that such a micro-batch fits into the memory of all.

        Each tries two by itself, with room for the optimiser's state. From then on none may run out of
        memory, since the others would wait for it. Sharded weights are gathered in the trial too: it assumes
        that processes with equal shards and equal micro-batches run out together.

        Raises:
            torch.OutOfMemoryError: in all processes, if one ran out.
        """
        if self.accelerator.num_processes == 1:
            return
        ran_out = False
        try:
            self._try(step, micro, room=0 if optimizer.state else 2)
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            ran_out = True
        optimizer.zero_grad(set_to_none=True)
        if anywhere(ran_out, self.accelerator):
            # In the words that Accelerate knows.
            raise torch.OutOfMemoryError(f"one process is out of memory. The micro-batch was {micro} blocks")

    def _try(self, step: int, micro: int, room: int) -> None:
        """The first two micro-batches of a step, beside ``room`` times the memory of the weights."""
        taken = [torch.zeros_like(one) for _ in range(room) for one in self.module.parameters()]
        batches = my_micro_batches(self._numbers(step), micro, self.accelerator)[:2]
        for place, (numbers, _) in enumerate(batches, start=1):
            # Sharded gradients that were not exchanged would stay and be added to those of the next step.
            exchanged = place == len(batches) and self.accelerator.is_fsdp2
            with nullcontext() if exchanged else self.accelerator.no_sync(self.module):
                # Replicas are passed by: they exchange buffers in their forward pass.
                batch = self.targets.batch(numbers)
                loss, _ = self.distillation(batch, Count.of(self.targets.tokens[numbers]))
                self.accelerator.backward(loss)
        del taken
