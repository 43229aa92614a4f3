"""The ledger of memory: what each stage needs beside what there is, and the placement that follows from it.

Of all placements the first is taken that fits with a margin: everything stays on the device; the sorted
weights lie on the host; the teacher does so too while students train; micro-batches are smaller; activations
are recomputed; AdamW keeps its states in 8 bits; the teacher's layers are loaded in turn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.targets.batch import FormName
from evaluators.distillation.targets.choice import size_text
from evaluators.metrics.capacity import Capacity, capacity_of
from evaluators.metrics.memory import StageNeeds
from search.settings.placement import Placement
from search.settings.run_sizes import RunSizes
from search.settings.stage_memory import StageMemory
from search.settings.targets_plan import TargetsPlan, free_bytes, plan_targets, setting_of
from search.terminal.command import is_multi_process, is_sharded
from space.input_error import InputError

if TYPE_CHECKING:
    from search.settings.resolved import Resolved

#: Share of the memory that stays free: what an allocator cannot use, and what the counts do not see.
MARGIN = 0.05
#: Below this share of the memory a rough closed form suffices to let everything stay.
_PLENTY = 0.5


@dataclass(frozen=True)
class Ledger:
    """The needs of a run's stages in one placement, and what there is."""

    stages: tuple[StageNeeds, ...]
    capacity: Capacity
    placement: Placement
    optimizer: OptimizerName

    @property
    def fits(self) -> bool:
        """Whether every stage fits with the margin."""
        return not self.short

    @property
    def short(self) -> list[tuple[StageNeeds, str, int, int]]:
        """The stages that do not fit: with where, what they need, and what there is but for the margin."""
        found = []
        for needs in self.stages:
            for where, needed, there in (
                ("device", needs.device_bytes, self.capacity.device),
                ("host", needs.host_bytes, self.capacity.host),
            ):
                if there is not None and needed > (room := round((1 - MARGIN) * there)):
                    found.append((needs, where, needed, room))
        return found


def choose(
    memory: StageMemory, capacity: Capacity, optimizers: Sequence[OptimizerName], *, by_layers: bool = False
) -> tuple[Placement, OptimizerName]:
    """Return the first placement and optimiser that fit.

    Args:
        memory: the needs of the run's stages.
        capacity: what there is.
        optimizers: those that may be taken, the first preferred.
        by_layers: whether the run can load the teacher's layers in turn.

    Raises:
        InputError: none fits; the message names the stage, what it needs, and the smallest changes that help.
    """
    there = capacity.host if capacity.shared else capacity.device
    if (there is None and capacity.host is None) or (
        there is not None and memory.certainly_below(round(_PLENTY * min(there, capacity.host or there)))
    ):
        return Placement(), optimizers[0]
    for placement, optimizer in _in_order(memory, capacity, optimizers, by_layers):
        if there is not None and memory.least(placement, optimizer) > (1 - MARGIN) * there:
            continue  # without counting activations
        found = ledger_of(memory, capacity, placement, optimizer)
        if found.fits:
            return placement, optimizer
    raise _refusal(memory, capacity, optimizers, by_layers)


def ledger_of(
    memory: StageMemory, capacity: Capacity, placement: Placement, optimizer: OptimizerName
) -> Ledger:
    """Return the ledger of a run in a placement."""
    return Ledger(tuple(memory.of(placement, optimizer)), capacity, placement, optimizer)


def memory_of(resolved: Resolved, folder: Path) -> StageMemory:
    """Return the needs of a run that writes to a folder, on whose disk targets may be kept.

    If asked-for targets do not fit there, all are assumed; the stage that makes them refuses.
    """
    config = resolved.config
    setting = setting_of(resolved, config.distillation_blocks * config.block)
    try:
        targets = plan_targets(config, setting, free_bytes(folder))
    except InputError:
        targets = TargetsPlan(FormName.HIDDEN, config.distillation_blocks)
    processes = int(os.environ["WORLD_SIZE"]) if is_multi_process() else 1
    return StageMemory(RunSizes(resolved, targets, processes, is_sharded()))


def run_ledger(resolved: Resolved, folder: Path) -> Ledger:
    """Return the ledger of a resolved run that writes to a folder."""
    capacity = capacity_of(torch.device(resolved.config.device), resolved.device_memory)
    optimizer = OptimizerName(resolved.config.optimizer)
    return ledger_of(memory_of(resolved, folder), capacity, resolved.placement, optimizer)


def cap_device_memory(resolved: Resolved) -> None:
    """Let this process take no more of a GPU than ``--device-memory`` says."""
    device = torch.device(resolved.config.device)
    if resolved.device_memory is None or device.type != "cuda":
        return
    share = resolved.device_memory / torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)


def _in_order(
    memory: StageMemory, capacity: Capacity, optimizers: Sequence[OptimizerName], by_layers: bool
) -> Iterator[tuple[Placement, OptimizerName]]:
    """Yield placements, the preferred first."""
    first = memory.sizes.micro_batch(Placement())
    for layered in (False, True) if by_layers else (False,):
        for optimizer in optimizers:
            for recompute in (False, True):
                stays = Placement(recompute=recompute, layer_by_layer=layered)
                if not (recompute or layered) and optimizer is optimizers[0]:
                    yield stays, optimizer
                    yield replace(stays, sorted_stay=False), optimizer
                away = replace(stays, sorted_stay=False, teacher_stays=capacity.shared)
                for micro in _halves(first):
                    yield replace(away, micro_batch=None if micro == first else micro), optimizer


def _halves(blocks: int) -> Iterator[int]:
    while blocks:
        yield blocks
        blocks //= 2


def _refusal(
    memory: StageMemory, capacity: Capacity, optimizers: Sequence[OptimizerName], by_layers: bool
) -> InputError:
    """Say by how much the least that a run can do with does not fit, and what would help."""
    *_, (placement, optimizer) = _in_order(memory, capacity, optimizers, by_layers)
    least = ledger_of(memory, capacity, placement, optimizer)
    needs, where, needed, room = max(least.short, key=lambda one: one[2] - one[3])
    place = "the host" if where == "host" else "the device"
    largest = sorted((needs.device if where == "device" else needs.host).items(), key=lambda one: -one[1])
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in largest[:4])
    whole = round(room / (1 - MARGIN))
    return InputError(
        f"Every stage of a run has to fit into memory, with {MARGIN:.0%} left free",
        f"at the least {needs.stage} needs {size_text(needed)} of {place} ({parts}), "
        f"which has {size_text(whole)}",
        _remedy(memory, capacity, optimizer, needs, where, needed, whole),
    )


def _remedy(
    memory: StageMemory,
    capacity: Capacity,
    optimizer: OptimizerName,
    needs: StageNeeds,
    where: str,
    needed: int,
    there: int,
) -> str:
    """Return the smallest changes that would do, the one that costs least first."""
    short = needed - round((1 - MARGIN) * there)
    found = []
    if optimizer is OptimizerName.ADAMW:
        placement = Placement(False, capacity.shared, recompute=True, micro_batch=1)
        eight = replace(placement, sorted_stay=False)
        if ledger_of(memory, capacity, eight, OptimizerName.ADAMW_8BIT).fits:
            found.append("take --optimizer adamw-8bit")
    trained = sum(needs.device.get(name, 0) + needs.host.get(name, 0) for name in ("weights", "gradients"))
    trained += needs.device.get("optimiser", 0) + needs.host.get("optimiser", 0)
    if needs.stage in ("distillation", "retraining") and 0 < short < 0.9 * trained:
        share = 1 - short / trained
        found.append(f"lower --budget to {share:.0%} of this one")
    if needs.stage == "correction":
        found.append("leave --correct-teacher out")
    if needs.device.get("teacher", 0) > short and needs.stage in ("distillation", "retraining"):
        found.append("keep the teacher's targets on disk, by --targets sampled or more free space")
    more = -(-round(needed / (1 - MARGIN) - there) // 10**9)
    found.append(f"find {more} GB more memory for the {where}")
    sentence = ", or ".join(found)
    return sentence[0].upper() + sentence[1:]
