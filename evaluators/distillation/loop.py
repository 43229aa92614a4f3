"""The one training loop: short distillation and retraining differ only in their token counts.

Every student reads the same batches in the same order, so that a difference between two students
is a difference between their architectures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.distillation.checkpoint import Curve, Position, load_checkpoint, save_checkpoint
from evaluators.distillation.divergence import chunked, forward_kl
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets import Targets
from evaluators.final_states import final_states, head_weight


class DivergenceError(RuntimeError):
    """The loss of a student stopped being a number."""


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

    def __init__(self, student: PreTrainedModel, teacher_head: Tensor) -> None:
        super().__init__()
        self.student, self.teacher_head = student, teacher_head

    def forward(self, tokens: Tensor, teacher_states: Tensor) -> Tensor:
        """The mean forward KL of a batch, in nats per token; see ``chunked``."""
        states = final_states(self.student, tokens)
        return chunked(forward_kl, states, head_weight(self.student), teacher_states, self.teacher_head)


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

    Args:
        student: float32 weights; left in evaluation mode.
        targets: the teacher's, cached or live.
        schedule: steps and learning rates.
        accelerator: devices and precision.
        watch: validation and progress.
        checkpointing: resume from, and save to, a file; the file is removed by the caller.

    Raises:
        DivergenceError: the loss is no number.
    """
    watch = watch or Watch()
    began = time.monotonic()
    optimizer = torch.optim.AdamW(_groups(student), lr=schedule.peak_rate, betas=(0.9, 0.95), fused=True)
    module, optimizer = accelerator.prepare(Distillation(student, targets.head), optimizer)
    position = Position(0, [], 0.0)
    if checkpointing is not None:
        saved = load_checkpoint(checkpointing.path, checkpointing.key, student, optimizer.optimizer)
        position = saved or position
    watch.advance(position.step * schedule.blocks * schedule.block)
    run = _Run(student, module, optimizer, targets, schedule, accelerator, watch, checkpointing, position)
    find_executable_batch_size(run.steps, starting_batch_size=schedule.blocks)()
    student.eval()
    accelerator.free_memory(module, optimizer)
    seconds = position.seconds + time.monotonic() - began
    return Outcome(schedule.steps * schedule.blocks * schedule.block, position.curve, seconds)


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

    def steps(self, batch_size: int) -> None:
        """Every step that is left, with micro-batches of ``batch_size`` blocks."""
        saved_at = time.monotonic()
        while self.position.step < self.schedule.steps:
            self._step(batch_size)
            self.position.step += 1
            self.watch.advance(self.schedule.blocks * self.schedule.block)
            self._validate()
            if self.checkpointing and time.monotonic() - saved_at > self.checkpointing.seconds:
                self._save(self.checkpointing, time.monotonic() - saved_at)
                saved_at = time.monotonic()

    def _step(self, micro: int) -> None:
        self.student.train()
        self.optimizer.zero_grad(set_to_none=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.position.step)
        first = self.position.step * self.schedule.blocks
        numbers = torch.arange(first, first + self.schedule.blocks) % self.targets.blocks
        mine = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        for some in mine.split(micro):
            loss = self.module(*self.targets.batch(some))
            if not math.isfinite(loss.item()):
                raise DivergenceError(f"the loss is {loss.item()} at step {self.position.step + 1}")
            self.accelerator.backward(loss * (len(some) / len(mine)))
        self.accelerator.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()

    def _validate(self) -> None:
        if self.watch.validate is None or not self.watch.times:
            return
        done, steps, times = self.position.step, self.schedule.steps, self.watch.times
        if done * times // steps > (done - 1) * times // steps:
            self.student.eval()
            tokens = done * self.schedule.blocks * self.schedule.block
            self.position.curve.append((tokens, self.watch.validate(self.student)))

    def _save(self, checkpointing: Checkpointing, seconds: float) -> None:
        self.position.seconds += seconds
        inner = self.optimizer.optimizer if hasattr(self.optimizer, "optimizer") else self.optimizer
        save_checkpoint(checkpointing.path, checkpointing.key, self.position, self.student, inner)
