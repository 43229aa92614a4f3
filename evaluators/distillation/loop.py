"""The entry point of training: short distillation and retraining differ only in their token counts.

Every student reads the same batches in the same order, so a difference between two students is a difference
between their architectures.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
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
from evaluators.distillation.nested import Draw, NestedDistillation
from evaluators.distillation.optimizers import OptimizerName, convert_weights, make_optimizer
from evaluators.distillation.processes import Gradient, Unsharder, blocks_per_process
from evaluators.distillation.saving import BestWeights, Checkpointing, TrainingFiles
from evaluators.distillation.schedule import DivergenceError, Rollback, Schedule
from evaluators.distillation.states import States, StatesLoss, layers_of
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.training import Training, TrainingMonitor
from space.cutting.shared_weights import SharedWeights
from space.input_error import InputError

__all__ = [
    "Checkpointing",
    "DistillationResult",
    "DivergenceError",
    "TrainingMonitor",
    "distil",
    "distil_nested",
]


@dataclass(frozen=True)
class DistillationResult:
    """The outcome of a distillation; the student itself is trained in place."""

    tokens: int
    """Training tokens, fewer than requested if the training ended early."""
    curve: Curve
    """(tokens, validation loss in nats per token) of each validation."""
    seconds: float
    """Training time summed over resumed runs, including the branch that it started from."""
    setback: Rollback | None = None
    """The rollback after a divergence, if there was one."""
    ended_early: str | None = None
    """Why the validation losses ended the training; the student then has the best weights."""
    best_tokens: int | None = None
    """Tokens after which the student had its final weights; None if best weights were not kept."""

    @property
    def note(self) -> str | None:
        """A remark for reports on rollback, early end and best weights; None if there is nothing to say."""
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
    monitor: TrainingMonitor | None = None,
    checkpointing: Checkpointing | None = None,
    *,
    loss: Loss | None = None,
    states: States | None = None,
    optimizer: OptimizerName = OptimizerName.ADAMW,
    micro_batch: int | None = None,
    recompute: bool = False,
) -> DistillationResult:
    """Train a student on the teacher's targets, in place.

    Running out of memory halves the micro-batch and repeats the step. If one block does not fit, activation
    checkpointing is turned on. The blocks of a step stay the same.
    Dropout stays off: the targets are whole distributions, and a step then does not depend on its
    micro-batches or on resuming.
    With checkpoints, a loss spike or a non-finite loss or gradient rolls the training back to the last
    checkpoint, once, at half the learning rate; see ``schedule.is_spike``.

    Args:
        student: the same in all processes; left in evaluation mode, with weights in the optimiser's dtype.
        targets: source of the batches, cached or live.
        schedule: steps and learning rates.
        accelerator: devices, processes and precision.
        monitor: validation and progress; every process calls it.
        checkpointing: where to resume from and save to; the caller removes the files.
        loss: loss on the logits; forward KL by default.
        states: intermediate states to compare too; the targets have to hold them.
        optimizer: AdamW, or AdamW in 8 bits, which needs the precision bf16 and cannot be sharded.
        micro_batch: blocks of the first micro-batch; by default those of ``first_micro_batch``.
        recompute: whether activation checkpointing is on from the first step.

    Raises:
        DivergenceError: the training diverged, with checkpoints for the second time; the student is as before
            the step. Or the first validation loss was not finite.
        torch.OutOfMemoryError: not even one block at a time fits.
        OSError: the disk is too full for a checkpoint; the previous one is unchanged.
    """
    began = time.monotonic()
    student.eval()
    convert_weights(student, optimizer)
    with targets.on_device():
        compared = None if states is None else _states_loss(states, student, targets)
        distillation = Distillation(student, targets, loss or Loss(), compared)
        unsharder = Unsharder(student, accelerator)
        try:
            gradient, prepared = _prepared(distillation, targets, schedule, accelerator, optimizer)
            saving, best = _files(checkpointing, gradient, prepared)
            training = Training(gradient, prepared, monitor or TrainingMonitor(), saving, best, began)
            _run_in_memory(training, micro_batch, recompute)
            unsharder.restore(student)
        finally:
            accelerator.free_memory()
    return _outcome(training)


def distil_nested(
    shared: SharedWeights,
    draw: Draw,
    targets: Targets,
    schedule: Schedule,
    accelerator: Accelerator,
    monitor: TrainingMonitor | None = None,
    checkpointing: Checkpointing | None = None,
    *,
    loss: Loss | None = None,
    optimizer: OptimizerName = OptimizerName.ADAMW,
    micro_batch: int | None = None,
    until: int | None = None,
) -> DistillationResult:
    """Train weights that students share, in place: each step one of them, on the teacher's targets.

    Args:
        shared: on the device of the training; trained in place.
        draw: the student of each step.
        monitor: validation and progress; a validation may change what is drawn from then on.
        targets: as in ``distil``, like all that follow.
        schedule: steps and learning rates.
        accelerator: devices, processes and precision.
        checkpointing: where to resume from and save to.
        loss: loss on the logits; forward KL by default.
        optimizer: AdamW, or AdamW in 8 bits.
        micro_batch: blocks of the first micro-batch.
        until: the step to stop at, with a checkpoint from which to go on; by default the last.

    Raises:
        DivergenceError: see ``distil``, also for its other errors.
    """
    assert not accelerator.is_fsdp2, "slices of sharded weights are not those of the weights"
    began = time.monotonic()
    convert_weights(shared, optimizer)
    shared.forget()
    with targets.on_device():
        distillation = NestedDistillation(shared, draw, targets, loss or Loss())
        try:
            gradient, prepared = _prepared(distillation, targets, schedule, accelerator, optimizer)
            saving, best = _files(checkpointing, gradient, prepared)
            training = Training(gradient, prepared, monitor or TrainingMonitor(), saving, best, began, until)
            _run_in_memory(training, micro_batch, recompute=False)
            training.stop()
        finally:
            accelerator.free_memory()
    return _outcome(training)


def _prepared(
    distillation: Distillation | NestedDistillation,
    targets: Targets,
    schedule: Schedule,
    accelerator: Accelerator,
    name: OptimizerName,
) -> tuple[Gradient, torch.optim.Optimizer]:
    """Build the optimiser, and let Accelerate distribute both over the processes."""
    # Accelerate reads the classes of the parts to shard from the module that it prepares.
    parts = getattr(distillation.student, "_no_split_modules", None)
    distillation._no_split_modules = parts  # type: ignore[assignment]
    optimizer = make_optimizer(distillation, name, schedule.peak_rate)
    module, prepared = accelerator.prepare(distillation, optimizer)
    return Gradient(distillation, module, targets, schedule, accelerator, name), prepared


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


def _run_in_memory(training: Training, micro_batch: int | None, recompute: bool) -> None:
    """Run a training with the largest micro-batches that fit, the given one or smaller."""
    schedule, accelerator = training.schedule, training.accelerator
    local_blocks = blocks_per_process(schedule.blocks, accelerator.num_processes)
    sizes = training.student.config.get_text_config(decoder=True)
    states = sizes.hidden_size * sizes.num_hidden_layers
    blocks = first_micro_batch(local_blocks, schedule.block, states, accelerator.device)
    if micro_batch is not None:
        blocks = min(local_blocks, micro_batch)
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

        saves = recompute and save_memory()
        next_smaller = smaller_micro_batches(blocks, (lambda: False) if saves else save_memory).__next__
        find_executable_batch_size(training.run, blocks, next_smaller)()


def _states_loss(states: States, student: PreTrainedModel, targets: Targets) -> StatesLoss:
    """Build the maps from the student's width to the teacher's, which is read off its states."""
    teacher_states = targets.batch(torch.arange(1)).states[str(states.pairs[0].teacher)]
    width = student.config.get_text_config(decoder=True).hidden_size
    return StatesLoss(states, width, teacher_states.shape[-1]).to(student.device, student.dtype)
