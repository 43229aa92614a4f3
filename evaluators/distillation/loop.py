"""The one training loop: short distillation and retraining differ only in their token counts.

Every student reads the same batches in the same order, so that a difference between two students
is a difference between their architectures.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import nn
from transformers import PreTrainedModel

from evaluators.distillation.checkpoint import Curve
from evaluators.distillation.efficiency import (
    activation_checkpointing,
    first_micro_batch,
    reset_compiled,
    smaller_micro_batches,
)
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.processes import Gradient, Unsharder, blocks_per_process
from evaluators.distillation.saving import BestWeights, Checkpointing, TrainingFiles
from evaluators.distillation.schedule import DivergenceError, Rollback, Schedule
from evaluators.distillation.states import States, StatesLoss, layers_of
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.training import Training, TrainingMonitor
from space.input_error import InputError

__all__ = ["Checkpointing", "DistillationResult", "DivergenceError", "TrainingMonitor", "distil"]


@dataclass(frozen=True)
class DistillationResult:
    """What a distillation came to; the student itself was trained in place."""

    tokens: int
    """Learnt from, fewer than asked for if it ended early."""
    curve: Curve
    """(tokens, validation loss in nats per token)."""
    seconds: float
    """Of all processes one after the other, a branch that it began from included."""
    setback: Rollback | None = None
    """The step back that was taken."""
    ended_early: str | None = None
    """Why it was ended by its validations; the student has the best weights."""
    best_tokens: int | None = None
    """After how many tokens the student had the weights that it ends with; None: the last."""

    @property
    def note(self) -> str | None:
        """What a reader of the results should know, if anything."""
        notes = [str(self.setback)] if self.setback else []
        if self.ended_early:
            notes.append(f"ended early, {self.ended_early}")
        if self.best_tokens not in (None, self.tokens):
            notes.append(f"the weights are those after {self.best_tokens:,} tokens")
        return "; ".join(notes) or None


def distil(
    student: PreTrainedModel,
    targets: Targets,
    schedule: Schedule,
    accelerator: Accelerator,
    watch: TrainingMonitor | None = None,
    checkpointing: Checkpointing | None = None,
    *,
    loss: Loss | None = None,
    states: States | None = None,
) -> DistillationResult:
    """Train a student on the teacher's targets, in place.

    Out of memory halves the micro-batch and repeats the step; where one block does not fit, the student's
    blocks are recomputed for their gradients. The blocks of a step stay the same.
    Dropout stays off: the targets are whole distributions, and a step is then the same however it is
    cut into micro-batches and whether or not the process was stopped before it.
    With checkpoints, a loss or gradient that is no number, or a spike, sets the training back to the last
    one, once, at half the rate; see ``divergence``.

    Args:
        student: float32 weights, the same in all processes; left in evaluation mode.
        targets: the teacher's, cached or live.
        schedule: steps and learning rates.
        accelerator: devices, processes and precision.
        watch: validation and progress; where there are several processes, in each.
        checkpointing: resume from, and save to, a file; the file is removed by the caller.
        loss: on the logits; forward KL unless told.
        states: which intermediate states are compared besides; the targets have to have them.

    Raises:
        DivergenceError: the loss or the gradient is no number, with checkpoints for the second time; the
            student is as it was before the step. Or the first validation gave no number.
        torch.OutOfMemoryError: not even one block at a time fits.
        OSError: the disk is too full for a checkpoint; the one before is as it was.
    """
    began = time.monotonic()
    student.eval()
    compared = None if states is None else _states_loss(states, student, targets)
    distillation = Distillation(student, targets, loss or Loss(), compared)
    restoration = Unsharder(student, accelerator)
    try:
        gradient, optimizer = _prepared(distillation, targets, schedule, accelerator)
        saving, best = _files(checkpointing, gradient, optimizer)
        training = Training(gradient, optimizer, watch or TrainingMonitor(), saving, best, began)
        _in_memory(training)
        restoration.restore(student)
    finally:
        accelerator.free_memory()
    return _outcome(training)


def _prepared(
    distillation: Distillation, targets: Targets, schedule: Schedule, accelerator: Accelerator
) -> tuple[Gradient, torch.optim.Optimizer]:
    """Spread over the processes as the accelerator says."""
    # Accelerate asks the module that it is given which of its parts are sharded one by one.
    parts = getattr(distillation.student, "_no_split_modules", None)
    distillation._no_split_modules = parts  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(_groups(distillation), lr=schedule.peak_rate, betas=(0.9, 0.95), fused=True)
    module, prepared = accelerator.prepare(distillation, optimizer)
    return Gradient(distillation, module, targets, schedule, accelerator), prepared


def _files(
    checkpointing: Checkpointing | None, gradient: Gradient, optimizer: Any
) -> tuple[TrainingFiles | None, BestWeights | None]:
    if checkpointing is None:
        return None, None
    inner, blocks, accelerator = optimizer.optimizer, gradient.targets.blocks, gradient.accelerator
    saving = TrainingFiles(
        checkpointing, gradient.distillation, inner, gradient.schedule, blocks, accelerator
    )
    if checkpointing.best is None:
        return saving, None
    return saving, BestWeights(checkpointing.best, checkpointing.key, accelerator)


def _outcome(training: Training) -> DistillationResult:
    return DistillationResult(
        training.tokens,
        training.position.curve,
        training.seconds,
        training.position.setback,
        training.ended_early,
        training.best.tokens if training.best is not None else None,
    )


def _in_memory(training: Training) -> None:
    """Run a training with the largest micro-batches that fit."""
    schedule, accelerator = training.schedule, training.accelerator
    mine = blocks_per_process(schedule.blocks, accelerator.num_processes)
    sizes = training.student.config.get_text_config(decoder=True)
    states = sizes.hidden_size * sizes.num_hidden_layers
    blocks = first_micro_batch(mine, schedule.block, states, accelerator.device)
    with ExitStack() as stack:
        if training.compiles:
            stack.callback(reset_compiled)

        def save_memory() -> bool:
            try:
                layers = layers_of(training.student)
            except InputError:
                return False
            stack.enter_context(activation_checkpointing(layers))
            return True

        smaller = smaller_micro_batches(blocks, save_memory).__next__
        find_executable_batch_size(training.run, blocks, smaller)()


def _states_loss(states: States, student: PreTrainedModel, targets: Targets) -> StatesLoss:
    """Maps between the widths of both; the teacher's shows in its states."""
    of_teacher = targets.batch(torch.arange(1)).states[str(states.pairs[0].teacher)]
    width = student.config.get_text_config(decoder=True).hidden_size
    return StatesLoss(states, width, of_teacher.shape[-1]).to(student.device)


def _groups(student: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices alone, not for norms and biases."""
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    vectors = [p for p in student.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
