"""The one training loop: short distillation and retraining differ only in their token counts.

Every student reads the same batches in the same order, so that a difference between two students
is a difference between their architectures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.attention import training_attention
from evaluators.distillation.checkpoint import Curve, Position, load_checkpoint, save_checkpoint
from evaluators.distillation.divergence import Head, chunked, forward_kl
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets import Targets
from evaluators.final_states import final_states, logits_of, vocabulary


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


class Distillation(nn.Module):
    """Student and loss as one module, so that wrappers for many processes see one forward pass."""

    def __init__(self, student: PreTrainedModel, teacher_head: Head) -> None:
        super().__init__()
        self.student, self.teacher_head = student, teacher_head

    def forward(self, tokens: Tensor, teacher_states: Tensor) -> Tensor:
        """The mean forward KL of a batch, in nats per token; see ``chunked``."""
        states = final_states(self.student, tokens)
        head = partial(logits_of, self.student)
        size = vocabulary(self.student)
        return chunked(forward_kl, states, head, teacher_states, self.teacher_head, size)


def distil(
    student: PreTrainedModel,
    targets: Targets,
    schedule: Schedule,
    accelerator: Accelerator,
    watch: Watch | None = None,
    checkpointing: Checkpointing | None = None,
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

    Raises:
        DivergenceError: the loss or the gradient is no number; the student is as it was before the step.
        torch.OutOfMemoryError: not even one block at a time fits.
    """
    watch, began = watch or Watch(), time.monotonic()
    student.eval()
    optimizer = torch.optim.AdamW(_groups(student), lr=schedule.peak_rate, betas=(0.9, 0.95), fused=True)
    module, optimizer = accelerator.prepare(Distillation(student, targets.head), optimizer)
    position = Position(0, [], 0.0)
    if checkpointing is not None:
        saved = load_checkpoint(checkpointing.path, checkpointing.key, student, optimizer.optimizer)
        position = saved or position
    watch.advance(position.step * schedule.blocks * schedule.block)
    began -= position.seconds
    run = _Run(
        student, module, optimizer, targets, schedule, accelerator, watch, checkpointing, position, began
    )
    smaller = _halves(schedule.blocks).__next__
    try:
        find_executable_batch_size(run.steps, schedule.blocks, smaller)()
    finally:
        accelerator.free_memory()
    tokens = schedule.steps * schedule.blocks * schedule.block
    return Outcome(tokens, position.curve, time.monotonic() - began)


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
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.position.step)
        first = self.position.step * self.schedule.blocks
        numbers = torch.arange(first, first + self.schedule.blocks) % self.targets.blocks
        mine = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        for some in mine.split(micro):
            loss = self.module(*self.targets.batch(some))
            self._check(loss, "loss")
            self.accelerator.backward(loss * (len(some) / len(mine)))
        norm = self.accelerator.clip_grad_norm_(self.student.parameters(), 1.0)
        self._check(norm, "norm of the gradient")
        self.optimizer.step()

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
