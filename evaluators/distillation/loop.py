"""The one training loop: short distillation and retraining differ only in their token counts.

Every student reads the same batches in the same order, so that a difference between two students
is a difference between their architectures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.attention import training_attention
from evaluators.distillation.checkpoint import Curve, Position, load_checkpoint, save_checkpoint
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.states import States, StatesLoss
from evaluators.distillation.targets.batch import Count, Targets


class DivergenceError(RuntimeError):
    """The loss of a student, or its gradient, stopped being a number."""


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where and how often a training is saved."""

    path: Path
    key: str
    """Names the training: a checkpoint of another one is not used."""
    seconds: float = 120.0
    """Between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on while a student learns."""

    validate: Callable[[PreTrainedModel], float] | None = None
    """The validation loss of the student, taken ``times`` times at equal distances."""
    times: int = 0
    advance: Callable[[int], None] = field(default=lambda tokens: None)
    """Told the tokens of each step."""


@dataclass(frozen=True)
class Outcome:
    """What a distillation came to; the student itself was trained in place."""

    tokens: int
    curve: Curve
    """(tokens, validation loss in nats per token)."""
    seconds: float


def distil(
    student: PreTrainedModel,
    targets: Targets,
    schedule: Schedule,
    accelerator: Accelerator,
    watch: Watch | None = None,
    checkpointing: Checkpointing | None = None,
    *,
    loss: Loss | None = None,
    states: States | None = None,
) -> Outcome:
    """Train a student on the teacher's targets, in place.

    Out of memory halves the micro-batch and repeats the step; the blocks of a step stay the same.
    Dropout stays off: the targets are whole distributions, and a step is then the same however it is
    cut into micro-batches and whether or not the process was stopped before it.

    Args:
        student: float32 weights; left in evaluation mode.
        targets: the teacher's, cached or live.
        schedule: steps and learning rates.
        accelerator: devices and precision.
        watch: validation and progress.
        checkpointing: resume from, and save to, a file; the file is removed by the caller.
        loss: on the logits; forward KL unless told.
        states: which intermediate states are compared besides; the targets have to have them.

    Raises:
        DivergenceError: the loss or the gradient is no number; the student is as it was before the step.
        torch.OutOfMemoryError: not even one block at a time fits.
    """
    watch, began = watch or Watch(), time.monotonic()
    student.eval()
    compared = None if states is None else _states_loss(states, student, targets)
    distillation = Distillation(student, targets, loss or Loss(), compared)
    optimizer = torch.optim.AdamW(_groups(distillation), lr=schedule.peak_rate, betas=(0.9, 0.95), fused=True)
    module, optimizer = accelerator.prepare(distillation, optimizer)
    position = Position(0, [], 0.0)
    if checkpointing is not None:
        saved = load_checkpoint(checkpointing.path, checkpointing.key, student, optimizer.optimizer)
        position = saved or position
    watch.advance(position.step * schedule.blocks * schedule.block)
    began -= position.seconds
    run = _Run(
        student,
        distillation,
        module,
        optimizer,
        targets,
        schedule,
        accelerator,
        watch,
        checkpointing,
        position,
        began,
    )
    smaller = _halves(schedule.blocks).__next__
    try:
        find_executable_batch_size(run.steps, schedule.blocks, smaller)()
    finally:
        accelerator.free_memory()
    tokens = schedule.steps * schedule.blocks * schedule.block
    return Outcome(tokens, position.curve, time.monotonic() - began)


def _states_loss(states: States, student: PreTrainedModel, targets: Targets) -> StatesLoss:
    """Maps between the widths of both; the teacher's shows in its states."""
    of_teacher = targets.batch(torch.arange(1)).states[str(states.pairs[0].teacher)]
    width = student.config.get_text_config(decoder=True).hidden_size
    return StatesLoss(states, width, of_teacher.shape[-1]).to(student.device)


def _halves(blocks: int) -> Iterator[int]:
    """The micro-batches to try after ``blocks``."""
    while blocks := blocks // 2:
        yield blocks
    raise torch.OutOfMemoryError("out of memory with a micro-batch of one block")


def _groups(student: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices alone, not for norms and biases."""
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    vectors = [p for p in student.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@dataclass
class _Run:
    student: PreTrainedModel
    distillation: Distillation
    module: nn.Module
    optimizer: torch.optim.Optimizer
    targets: Targets
    schedule: Schedule
    accelerator: Accelerator
    watch: Watch
    checkpointing: Checkpointing | None
    position: Position
    began: float
    """When it began on ``time.monotonic``, as if it had never been stopped."""

    def steps(self, micro: int) -> None:
        """All that is left of the steps, by micro-batches of ``micro`` blocks, and of the validations.

        Called again after running out of memory, it goes on where it was.
        """
        steps, times = self.schedule.steps, min(self.watch.times, self.schedule.steps)
        ends = [-(-steps * number // times) for number in range(1, times + 1)] or [steps]
        for end in ends[len(self.position.curve) :]:
            with training_attention(self.student, self.schedule.block, self.accelerator):
                self._train(end, micro)
            self._validate()

    def _train(self, end: int, micro: int) -> None:
        while self.position.step < end:
            self._step(micro)
            self.position.step += 1
            self.watch.advance(self.schedule.blocks * self.schedule.block)
            unsaved = time.monotonic() - self.began - self.position.seconds
            if self.checkpointing and unsaved > self.checkpointing.seconds:
                self._save(self.checkpointing)

    def _step(self, micro: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.distillation.states is not None and self.position.step == 0:
            with torch.no_grad():
                self._weigh(self._pass(micro, learn=False))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.position.step)
        totals = self._pass(micro, learn=True)
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), 1.0)
        self._check(norm, "norm of the gradient")
        self.optimizer.step()
        self._weigh(totals)

    def _pass(self, micro: int, *, learn: bool) -> Tensor:
        """(2,) a step's loss and its loss on the states, over this process's blocks, with their gradient."""
        first = self.position.step * self.schedule.blocks
        numbers = torch.arange(first, first + self.schedule.blocks) % self.targets.blocks
        mine = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        count = Count.of(self.targets.tokens[numbers])
        totals = torch.zeros(2, device=self.student.device)
        for some in mine.split(micro):
            loss, apart = self.module(self.targets.batch(some), count)
            self._check(loss, "loss")
            totals += torch.stack([loss.detach(), apart])
            if learn:
                self.accelerator.backward(loss * self.accelerator.num_processes)
        return totals

    def _weigh(self, totals: Tensor) -> None:
        """Let the states weigh as much as the logits in the step to come."""
        if self.distillation.states is None:
            return
        loss, apart = self.accelerator.reduce(totals)
        alpha = self.distillation.alpha
        alpha.copy_((loss - alpha * apart) / apart.clamp(min=1e-12))

    def _check(self, value: Tensor, what: str) -> None:
        if not math.isfinite(value.item()):
            raise DivergenceError(f"the {what} is {value.item()} at step {self.position.step + 1}")

    def _validate(self) -> None:
        if self.watch.validate is not None and self.watch.times:
            tokens = self.position.step * self.schedule.blocks * self.schedule.block
            self.position.curve.append((tokens, self.watch.validate(self.student)))

    def _save(self, checkpointing: Checkpointing) -> None:
        self.position.seconds = time.monotonic() - self.began
        inner = self.optimizer.optimizer if hasattr(self.optimizer, "optimizer") else self.optimizer
        save_checkpoint(checkpointing.path, checkpointing.key, self.position, self.student, inner)
