"""A training with everything that has to be resumed: accumulation, intermediate states, a rate that changes.

Here to be run in processes that are killed, and in several at once.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.loop import Checkpointing, DistillationResult, TrainingMonitor, distil
from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.schedule import Schedule, ScheduleShape
from evaluators.distillation.states import StateKind, StatePair, StatePlace, States
from evaluators.distillation.targets.batch import Batch
from evaluators.distillation.targets.live import LiveTargets
from tests.evaluators.distillation.training import BLOCK, TOKENS, loss_of
from tests.evaluators.tiny_models import tiny_model

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."
STATES = States(
    (
        StatePair(StatePlace(StateKind.EMBEDDING), StatePlace(StateKind.EMBEDDING)),
        StatePair(StatePlace(StateKind.BLOCK, 0), StatePlace(StateKind.BLOCK, 1)),
        StatePair(StatePlace(StateKind.ATTENTION, 1), StatePlace(StateKind.ATTENTION, 2)),
    )
)


class Small(LiveTargets):
    """Targets that run out of memory when more than ``most`` blocks are asked for.

    The teacher is sure of itself, so that gradients are clipped in some steps and not in others.
    """

    def __init__(self, most: int = 100, states: bool = False) -> None:
        teacher = tiny_model(seed=3)
        with torch.no_grad():
            teacher.get_parameter("lm_head.weight").mul_(8)
        super().__init__(teacher, TOKENS, STATES.of_teacher if states else ())
        self.most = most
        self.asked: list[list[int]] = []

    def batch(self, numbers: Tensor) -> Batch:
        if len(numbers) > self.most:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        self.asked.append(numbers.tolist())
        return super().batch(numbers)


def plan(
    steps: int, blocks: int = 4, shape: ScheduleShape = ScheduleShape.WSD, peak_rate: float = 0.01
) -> Schedule:
    return Schedule(
        tokens=steps * blocks * BLOCK,
        blocks=blocks,
        block=BLOCK,
        peak_rate=peak_rate,
        shape=shape,
        warm_up_steps=3,
    )


def train(
    student: PreTrainedModel,
    accelerator: Accelerator,
    schedule: Schedule,
    *,
    most: int = 100,
    states: bool = False,
    learnt: Tensor | None = None,
    times: int = 4,
    advance: Callable[[int], None] = lambda tokens: None,
    validate: Callable[[PreTrainedModel], float] = loss_of,
    optimizer: OptimizerName = OptimizerName.ADAMW,
    **files: Any,
) -> DistillationResult:
    """Distil; files are the fields of Checkpointing, without which nothing is saved."""
    watch = TrainingMonitor(validate=validate, times=times, advance=advance)
    saving = Checkpointing(**{"key": "a training", "seconds": 0, **files}) if files else None
    targets = Small(most, states)
    targets.learnt = learnt
    compared = STATES if states else None
    return distil(
        student, targets, schedule, accelerator, watch, saving, states=compared, optimizer=optimizer
    )


def train_to_be_killed(folder: Path, precision: str, steps: int, begins: Any) -> None:
    """The training of a process that another one kills, not too fast; says when it has taken a step."""
    from tests.evaluators.tiny_models import tiny_student

    def advance(tokens: int) -> None:
        if tokens:
            begins.set()
        time.sleep(0.005)

    gc.freeze()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    files: dict[str, Any] = {"path": folder / "student.safetensors", "best": folder / "best.safetensors"}
    train(tiny_student(), accelerator, plan(steps), most=2, states=True, advance=advance, **files)
