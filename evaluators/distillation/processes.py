"""Training one student on several processes: sharing the blocks, the gradient of a step, sending students.

A step gives the same result on any number of processes. All processes run equally many micro-batches, since
FSDP gathers the sharded weights in each.

Pruning needs the teacher's sorted weights, which are as large as the teacher. So one process prunes, and
sends the student to the others.
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
from evaluators.distillation.nested import NestedDistillation
from evaluators.distillation.optimizers import OptimizerName, state_bytes
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import Batch, Count, Targets, rows
from evaluators.distillation.targets.long_tail import blocks_of_step
from space.cutting.extraction import model_from_weights


def local_micro_batches(numbers: Tensor, micro: int, accelerator: Accelerator) -> list[tuple[Tensor, bool]]:
    """Return this process's micro-batches of a step, each with whether it counts.

    A process with fewer micro-batches than another repeats a block that does not count.

    Args:
        numbers: (blocks,) numbers of the blocks of the whole step.
        micro: blocks per micro-batch.
        accelerator: knows which process this is.
    """
    processes = accelerator.num_processes
    local = numbers[accelerator.process_index :: processes]
    most = -(-blocks_per_process(len(numbers), processes) // micro)
    batches = [(some, True) for some in local.split(micro) if len(some)]
    return batches + [(numbers[:1], False)] * (most - len(batches))


def blocks_per_process(blocks: int, processes: int) -> int:
    """Return the most blocks of a step that one process reads."""
    return -(-blocks // processes)


def in_any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Return whether the flag is set in any process."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item())


def on_main_process(flag: bool, accelerator: Accelerator) -> bool:
    """Return the main process's flag, for decisions by the clock, which differs between processes."""
    if accelerator.num_processes == 1:
        return flag
    return bool(broadcast(torch.tensor(float(flag), device=accelerator.device)).item())


def from_main_process(value: float, accelerator: Accelerator) -> float:
    """Return the main process's value, so that all processes decide by bitwise the same number."""
    if accelerator.num_processes == 1:
        return value
    return float(broadcast(torch.tensor(value, dtype=torch.float64, device=accelerator.device)).item())


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Within the context, the student can run by itself, outside the sharded module.

    The blocks gather their own weights; this gathers the weights around them.
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
    """Undoes FSDP, which changes the classes of a student's modules and leaves each process a shard."""

    def __init__(self, student: PreTrainedModel, accelerator: Accelerator) -> None:
        """Keep a copy of the student without its weights, before Accelerate prepares it."""
        self._twin: PreTrainedModel | None = None
        if accelerator.is_fsdp2:
            memo = {id(one): _empty(one) for one in student.parameters()}
            self._twin = copy.deepcopy(student, memo)

    def restore(self, student: PreTrainedModel) -> None:
        """Give every process the whole student. All processes have to call this."""
        if self._twin is None:
            return
        full = {name: _full(one) for name, one in student.named_parameters()}
        replacements = {id(one): nn.Parameter(full[name]) for name, one in self._twin.named_parameters()}
        for module in self._twin.modules():
            for name, one in module._parameters.items():
                module._parameters[name] = None if one is None else replacements[id(one)]
        vars(student).clear()
        vars(student).update(vars(self._twin))


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def _full(parameter: nn.Parameter) -> Tensor:
    full: Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return full.detach()


@dataclass(frozen=True)
class StudentDescription:
    """A student without its weights."""

    config: PretrainedConfig
    tensors: dict[str, tuple[torch.Size, torch.dtype]]
    """Shapes and dtypes of parameters and saved buffers, by name, in the order of sending."""


def describe_student(student: PreTrainedModel) -> StudentDescription:
    """Return what other processes need to know before they receive the student."""
    return StudentDescription(student.config, {name: (one.shape, one.dtype) for name, one in _saved(student)})


@torch.no_grad()
def send_weights(student: PreTrainedModel) -> None:
    """Send the weights to all other processes, each of which calls ``receive_student``."""
    for _, tensor in _saved(student):
        torch.distributed.broadcast(tensor.detach().contiguous(), 0)


def receive_student(description: StudentDescription, device: torch.device) -> PreTrainedModel:
    """Receive the student that the first process sends.

    Args:
        description: config and shapes of the student.
        device: device of this process.
    """
    weights = {}
    for name, (shape, dtype) in description.tensors.items():
        weights[name] = torch.empty(shape, dtype=dtype, device=device)
        torch.distributed.broadcast(weights[name], 0)
    return model_from_weights(description.config, weights)


def _saved(student: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters, tied ones once, and the persistent buffers."""
    yield from student.named_parameters()
    saved = student.state_dict(keep_vars=True)
    yield from ((name, one) for name, one in student.named_buffers() if name in saved)


@dataclass(frozen=True)
class Gradient:
    """Computes the loss and gradient of a step; the number of the step determines its blocks."""

    distillation: Distillation | NestedDistillation
    module: nn.Module
    """``distillation`` as Accelerate prepared it."""
    targets: Targets
    schedule: Schedule
    accelerator: Accelerator
    optimizer: OptimizerName = OptimizerName.ADAMW

    def compute(self, step: int, micro: int, *, backward: bool = True) -> Tensor:
        """Return (2,) the loss of a step and its L_states, summed over all processes.

        Gradients are accumulated, and exchanged between processes with the last micro-batch.

        Args:
            step: number of the step, from 0.
            micro: blocks per micro-batch.
            backward: whether to compute gradients.
        """
        targets, numbers, micro = self._blocks(step, micro)
        count = _count(targets, numbers)
        totals = torch.zeros(2, device=self.accelerator.device)
        batches = local_micro_batches(numbers, micro, self.accelerator)
        for place, (some, counts) in enumerate(batches, start=1):
            unsynced = place < len(batches) and self.accelerator.num_processes > 1
            with self.accelerator.no_sync(self.module) if unsynced else nullcontext():
                totals += self._micro_batch(targets.batch(some), count, float(counts), backward)
        return self.accelerator.reduce(totals) if self.accelerator.num_processes > 1 else totals

    def _blocks(self, step: int, micro: int) -> tuple[Targets, Tensor, int]:
        """Return the targets and blocks of a step, and how many blocks have the tokens of a micro-batch."""
        targets, numbers = blocks_of_step(self.targets, step, self.schedule)
        return targets, numbers, max(1, micro * self.schedule.block // targets.tokens.shape[1])

    def _micro_batch(self, batch: Batch, count: Count, weight: float, backward: bool) -> Tensor:
        with torch.set_grad_enabled(backward):
            loss, states_loss = self.module(batch, count)
        if backward:
            self.accelerator.backward(loss * (weight * self.accelerator.num_processes))
        return weight * torch.stack([loss.detach(), states_loss])

    def check_memory(self, step: int, micro: int, optimizer: torch.optim.Optimizer) -> None:
        """Check that a micro-batch of this size fits into the memory of all processes.

        Each process tries two, with room for the optimiser's state. After that none may run out of memory,
        since the others would wait for it. The trial gathers sharded weights too: it assumes that processes
        with equal shards and equal micro-batches run out together.

        Raises:
            torch.OutOfMemoryError: in all processes, if one ran out.
        """
        if self.accelerator.num_processes == 1:
            return
        ran_out = False
        try:
            room = 0 if optimizer.state else state_bytes(self.module.parameters(), self.optimizer)
            self._try(step, micro, room)
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            ran_out = True
        optimizer.zero_grad(set_to_none=True)
        if in_any_process(ran_out, self.accelerator):
            # Accelerate recognises this error.
            raise torch.OutOfMemoryError(f"one process is out of memory. The micro-batch was {micro} blocks")

    def _try(self, step: int, micro: int, room: int) -> None:
        """Run two micro-batches of a step, with ``room`` bytes reserved."""
        reserved = torch.zeros(room, dtype=torch.uint8, device=self.accelerator.device)
        targets, blocks, micro = self._blocks(step, micro)
        batches = local_micro_batches(blocks, micro, self.accelerator)[:2]
        for place, (numbers, _) in enumerate(batches, start=1):
            # FSDP would add sharded gradients that were not exchanged to those of the next step.
            exchanged = place == len(batches) and self.accelerator.is_fsdp2
            with nullcontext() if exchanged else self.accelerator.no_sync(self.module):
                # Bypass DDP, which exchanges buffers in its forward pass.
                loss, _ = self.distillation(targets.batch(numbers), _count(targets, numbers))
                self.accelerator.backward(loss)
        del reserved


def _count(targets: Targets, numbers: Tensor) -> Count:
    return Count.of(targets.tokens[numbers], rows(targets.learnt, numbers))
