"""The plan of a run that cuts a teacher, and what the ledger makes of its training on this card."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.targets.batch import FormName
from evaluators.metrics.capacity import capacity_of
from evaluators.metrics.memory import StageNeeds
from search.settings.config import RunConfig
from search.settings.flags import Flags
from search.settings.ledger import Ledger, choose, ledger_of, memory_of
from search.settings.optimizer import precision_for
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from space.axes.architecture import Architecture
from studies.benchmarks.distil_models import device
from studies.gpu.bench import NotHereError
from studies.gpu.shapes import Shape, Work

#: Parts of a stage that PyTorch does not allocate while a student trains here: the allowance for the CUDA
#: context; weights that students are cut from, which lie on the host; on a CPU what was there before.
_APART = ("workspace", "sorted weights", "process", "text")
#: Optimisers that the ledger chooses from, the preferred first.
AUTO = (OptimizerName.ADAMW, OptimizerName.ADAMW_8BIT)


@dataclass(frozen=True)
class Plan:
    """How students train from one form of targets."""

    resolved: Resolved
    """The run, with its targets, optimiser and precision."""
    form: FormName
    ledger: Ledger
    architecture: Architecture
    """The student that takes the most memory, which the ledger counts."""
    micro: int
    """Blocks of a micro-batch."""

    @property
    def config(self) -> RunConfig:
        """The configuration of the run."""
        return self.resolved.config

    @property
    def needs(self) -> StageNeeds:
        """What distillation needs."""
        return next(needs for needs in self.ledger.stages if needs.stage == "distillation")

    @property
    def foretold(self) -> dict[str, int]:
        """Bytes of distillation that PyTorch should allocate, by what they are for."""
        parts = self.needs.host if self.ledger.capacity.shared else self.needs.device
        return {name: size for name, size in parts.items() if name not in _APART}

    def with_step(self, blocks: int) -> Plan:
        """Return the plan with shorter steps: of at least so many blocks, in whole micro-batches.

        Two micro-batches are the least: from the second on, gradients are there throughout.
        """
        whole = self.micro * max(2, -(-blocks // self.micro))
        config = replace(self.config, batch_blocks=min(self.config.batch_blocks, whole))
        return replace(self, resolved=replace(self.resolved, config=config))


def resolved_run(shape: Shape, work: Work, folder: Path, memory: str | None = None) -> Resolved:
    """Resolve a run that cuts a shape, with the blocks and batches that its size gets by default.

    The amounts of training are small, so that no pace has to be measured.

    Args:
        shape: the teacher's.
        work: has the budget.
        folder: for the teacher's config.
        memory: of a card that is not here, if the plan is for one.

    Raises:
        InputError: the run does not fit on this device.
    """
    shape.config.save_pretrained(folder / shape.name)
    flags = Flags(
        budget=work.budget,
        model=(str(folder / shape.name),),
        basis="coordinate",
        device=None if memory else str(device()),
        device_memory=memory,
        dtype="bfloat16",
        plan=memory is not None,
        trials=4,
        rung_tokens=("65536",),
        search_tokens="400000",
        retrain_tokens="131072",
        promote=1,
        retrain_baselines=False,
        out=folder,
    )
    return resolve(flags)


def plan_of(
    resolved: Resolved, form: FormName, folder: Path, optimizers: Sequence[OptimizerName] = AUTO
) -> Plan:
    """Let the ledger place a run's training from one form of targets.

    Args:
        resolved: the run.
        form: of the targets.
        folder: on the disk where targets are kept.
        optimizers: those that may be taken.

    Raises:
        InputError: the run does not fit.
        NotHereError: it fits with 8-bit states alone, and torchao is not installed.
    """
    asked = resolved.with_config(targets=form.value)
    memory = memory_of(asked, folder)
    capacity = capacity_of(torch.device(asked.config.device), asked.device_memory)
    placement, optimizer = choose(memory, capacity, optimizers)
    if optimizer is OptimizerName.ADAMW_8BIT and importlib.util.find_spec("torchao") is None:
        raise NotHereError("8-bit states of AdamW need torchao, which is not installed")
    dtype = precision_for(optimizer) or asked.config.dtype
    placed = replace(asked.with_config(optimizer=optimizer.value, dtype=dtype), placement=placement)
    return Plan(
        placed,
        form,
        ledger_of(memory, capacity, placement, optimizer),
        memory.sizes.largest[1],
        memory.sizes.micro_batch(placement),
    )
