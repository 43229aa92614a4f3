"""Several processes that train one student: who reads what, and the gradient of a step over all of them.

A step is the same however many processes take it. Every process runs as many micro-batches as every other,
since sharded weights are gathered in each.

Pruning needs the teacher's sorted weights, which are as large as the teacher; so one process prunes, and the
others are sent what came of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PretrainedConfig, PreTrainedModel

from evaluators.distillation.module import Distillation
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import Count, Targets
from space.cutting.extraction import model_from_weights


def my_micro_batches(numbers: Tensor, micro: int, accelerator: Accelerator) -> list[tuple[Tensor, bool]]:
    """The blocks of a step that this process reads, and whether they count.

    Where another process has more, some are read again that do not count.

    Args:
        numbers: (blocks,) of the whole step.
        micro: blocks at once.
        accelerator: which process this is.
    """
    processes = accelerator.num_processes
    mine = numbers[accelerator.process_index :: processes]
    times = -(-blocks_per_process(len(numbers), processes) // micro)
    batches = [(some, True) for some in mine.split(micro) if len(some)]
    return batches + [(numbers[:1], False)] * (times - len(batches))


def blocks_per_process(blocks: int, processes: int) -> int:
    """The most blocks of a step that one process reads."""
    return -(-blocks // processes)


def in_any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether it holds in any process."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item())


def on_main_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether it holds in the main process: clocks differ."""
    if accelerator.num_processes == 1:
        return flag
    return bool(broadcast(torch.tensor(float(flag), device=accelerator.device)).item())


def from_main_process(value: float, accelerator: Accelerator) -> float:
    """As the main process has it: what all decide by has to be the same to the last bit."""
    if accelerator.num_processes == 1:
        return value
    return float(broadcast(torch.tensor(value, dtype=torch.float64, device=accelerator.device)).item())


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Within the context a student can be used by itself, outside the module that was sharded.

    The blocks gather their own weights; those around them are gathered here.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


class Unsharder:
    """Makes a student plain again that sharding left with other classes and parts of its weights."""

    def __init__(self, student: PreTrainedModel, accelerator: Accelerator) -> None:
        """Remember the student as it is before it is prepared, without its weights."""
        self._twin: PreTrainedModel | None = None
        if accelerator.is_fsdp2:
            memo = {id(one): _empty(one) for one in student.parameters()}
            self._twin = copy.deepcopy(student, memo)

    def restore(self, student: PreTrainedModel) -> None:
        """Give every process the whole student. All of them have to come here."""
        if self._twin is None:
            return
        whole = {name: _full(one) for name, one in student.named_parameters()}
        known = {id(one): nn.Parameter(whole[name]) for name, one in self._twin.named_parameters()}
        for module in self._twin.modules():
            for name, one in module._parameters.items():
                module._parameters[name] = None if one is None else known[id(one)]
        vars(student).clear()
        vars(student).update(vars(self._twin))


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def _full(parameter: nn.Parameter) -> Tensor:
    whole: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return whole.detach()


@dataclass(frozen=True)
class StudentDescription:
    """A student without its weights."""

    config: PretrainedConfig
    tensors: dict[str, tuple[torch.Size, torch.dtype]]
    """Shapes and types of what is saved, by name, in the order in which it is sent."""


def describe_student(student: PreTrainedModel) -> StudentDescription:
    """What others have to know of a student before it is sent."""
    return StudentDescription(student.config, {name: (one.shape, one.dtype) for name, one in _saved(student)})


@torch.no_grad()
def send_weights(student: PreTrainedModel) -> None:
    """Send the weights to all other processes, each of which calls ``receive_student``."""
    for _, tensor in _saved(student):
        torch.distributed.broadcast(tensor.detach().contiguous(), 0)


def receive_student(described: StudentDescription, device: torch.device) -> PreTrainedModel:
    """The student that the first process sends.

    Args:
        described: what it is.
        device: of this process.
    """
    weights = {}
    for name, (shape, dtype) in described.tensors.items():
        weights[name] = torch.empty(shape, dtype=dtype, device=device)
        torch.distributed.broadcast(weights[name], 0)
    return model_from_weights(described.config, weights)


def _saved(student: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters, tied ones once, and saved buffers."""
    yield from student.named_parameters()
    saved = student.state_dict(keep_vars=True)
    yield from ((name, one) for name, one in student.named_buffers() if name in saved)


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
        if in_any_process(ran_out, self.accelerator):
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
