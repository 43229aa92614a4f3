"""Several processes that train one student: who reads what, who decides, and what sharding hides.

A step is the same however many processes take it. Every process runs as many micro-batches as every other,
since sharded weights are gathered in each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


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
    times = -(-blocks_each(len(numbers), processes) // micro)
    batches = [(some, True) for some in mine.split(micro) if len(some)]
    return batches + [(numbers[:1], False)] * (times - len(batches))


def blocks_each(blocks: int, processes: int) -> int:
    """The most blocks of a step that one process reads."""
    return -(-blocks // processes)


def anywhere(flag: bool, accelerator: Accelerator) -> bool:
    """Whether it holds in any process."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item())


def in_the_first(flag: bool, accelerator: Accelerator) -> bool:
    """Whether it holds in the main process: clocks differ."""
    if accelerator.num_processes == 1:
        return flag
    return bool(broadcast(torch.tensor(float(flag), device=accelerator.device)).item())


def from_the_first(value: float, accelerator: Accelerator) -> float:
    """As the main process has it: what all decide by has to be the same to the last bit."""
    if accelerator.num_processes == 1:
        return value
    return float(broadcast(torch.tensor(value, dtype=torch.float64, device=accelerator.device)).item())


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
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


class Restoration:
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
