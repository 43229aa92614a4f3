"""The training loop: optimiser steps, validations, checkpoints, and at most one rollback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.checkpoint import Position
from evaluators.distillation.efficiency import compiled_blocks, compiling_pays
from evaluators.distillation.processes import Gradient, from_main_process, on_main_process, unsharded
from evaluators.distillation.saving import BestWeights, TrainingFiles
from evaluators.distillation.schedule import SPIKE, DivergenceError, Rollback, has_worsened, is_spike
from evaluators.distillation.states import StateKind, layers_of
from space.input_error import InputError

Advance = Callable[[int], None]
"""Called with the tokens of each step."""

#: Factor on the learning rate after a rollback.
_ROLLBACK_RATE = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainingMonitor:
    """Callbacks during a training."""

    validate: Callable[[PreTrainedModel], float] | None = None
    """Returns the validation loss of the student."""
    times: int = 0
    """Number of validations, equally spaced."""
    advance: Advance = field(default=lambda tokens: None)
    """Called with the tokens of each step; after a rollback with the lost tokens as a negative number."""


class Training:
    """A training in progress: its state, and the loop that completes it."""

    def __init__(
        self,
        gradient: Gradient,
        optimizer: torch.optim.Optimizer,
        monitor: TrainingMonitor,
        saving: TrainingFiles | None,
        best: BestWeights | None,
        began: float,
        until: int | None = None,
    ) -> None:
        """Resume from the checkpoint of an earlier process, or write the first one.

        Args:
            gradient: computes the gradient of a step.
            optimizer: the optimiser as Accelerate prepared it.
            monitor: validation and progress.
            saving: the checkpoints; without them a diverging training fails at once.
            best: keeps the best weights, if requested.
            began: start time on ``time.monotonic``.
            until: the step to stop at; by default the schedule's last.
        """
        self.gradient, self.optimizer, self.monitor = gradient, optimizer, monitor
        self.schedule, self.accelerator = gradient.schedule, gradient.accelerator
        self.distillation = gradient.distillation
        self.saving, self.best, self.began = saving, best, began
        self.last = self.schedule.steps if until is None else min(until, self.schedule.steps)
        self.ended_early: str | None = None
        self.compiles = self._compiling_pays()
        own = None if saving is None else saving.restore()
        branch = None if saving is None or own else saving.restore_branch()
        self.position = own or branch or Position(0, [], 0.0)
        self.began -= self.position.seconds
        if saving is not None and own is None:
            self._save()
        monitor.advance(self.tokens)

    @property
    def student(self) -> PreTrainedModel:
        """The student, or in nested training that of the last step."""
        return self.distillation.student

    @property
    def tokens(self) -> int:
        """Training tokens so far."""
        return self.position.step * self.schedule.tokens_per_step

    @property
    def seconds(self) -> float:
        """Training time so far, including that of interrupted processes."""
        return time.monotonic() - self.began

    def run(self, micro: int) -> None:
        """Run the remaining steps and validations with micro-batches of ``micro`` blocks.

        After running out of memory it can be called again, and continues where it stopped.
        """
        self.gradient.check_memory(self.position.step, micro, self.optimizer)
        with self._out_of_memory_is_final():
            while not self.ended_early and (end := self._next_end()) is not None:
                with self.distillation.attention(self.schedule.block, self.accelerator), self._compiled():
                    self._train(end, micro)
                if self.position.step == end:
                    self._validate()
        if self.best is not None:
            self.best.restore(self.student, self.tokens)

    @contextmanager
    def _out_of_memory_is_final(self) -> Iterator[None]:
        """With several processes, fail when out of memory: none may try smaller micro-batches alone."""
        try:
            yield
        except Exception as error:
            if self.accelerator.num_processes == 1 or not should_reduce_batch_size(error):
                raise
            where = f"at step {self.position.step + 1}, with micro-batches that fitted before"
            raise RuntimeError(f"one of several processes has no memory left {where}") from error

    def _compiling_pays(self) -> bool:
        """Return whether to compile blocks: if it pays, and no hook sits inside a block."""
        compared = self.distillation.states
        if not self.distillation.compilable:
            return False
        if compared is not None and any(p.kind is StateKind.ATTENTION for p in compared.states.of_student):
            return False
        parameters = sum(one.numel() for one in self.student.parameters())
        return compiling_pays(self.accelerator.device, self.schedule.tokens, parameters)

    def _compiled(self) -> AbstractContextManager[None]:
        try:
            return compiled_blocks(layers_of(self.student)) if self.compiles else nullcontext()
        except InputError:  # the class has no list of blocks
            return nullcontext()

    def _next_end(self) -> int | None:
        """Return the step of the next validation, or the last step; None if all are done."""
        steps = self.schedule.steps
        times = min(self.monitor.times, steps) if self.monitor.validate else 0
        validated = self.position.curve[-1][0] if self.position.curve else 0
        ends = [-(-steps * number // times) for number in range(1, times + 1)]
        for end in ends:
            if end * self.schedule.tokens_per_step > validated and end >= self.position.step:
                return end if end <= self.last else self._rest()
        return self._rest()

    def _rest(self) -> int | None:
        return self.last if self.position.step < self.last else None

    def stop(self) -> None:
        """Save a training that ends before its schedule does, so that it can go on."""
        if self.saving is not None and self.position.step < self.schedule.steps:
            self._save()

    def _train(self, end: int, micro: int) -> None:
        """Train until a step, or until a rollback."""
        while self.position.step < end:
            if self.saving is not None:
                self.saving.save_branch(self.position)
            divergence = self._step(micro)
            if divergence is not None:
                self._roll_back(*divergence)
                return
            self.position.step += 1
            self.monitor.advance(self.schedule.tokens_per_step)
            if self.saving is not None:
                due = self.saving.is_due(self.seconds - self.position.seconds)
                if on_main_process(due, self.accelerator):
                    self._save()

    def _step(self, micro: int) -> tuple[str, float] | None:
        """Take one optimiser step; if it diverged, skip it and return the quantity and its value."""
        position = self.position
        self.distillation.begin_step(position.step)
        self.optimizer.zero_grad(set_to_none=True)
        if self.distillation.states is not None and position.step == 0:
            self._update_alpha(self.gradient.compute(0, micro, backward=False))
        factor = _ROLLBACK_RATE if position.setback else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(position.step) * factor
        totals = self.gradient.compute(position.step, micro)
        norm = self.accelerator.clip_grad_norm_(self.gradient.module.parameters(), 1.0)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        loss, norm_value = torch.stack([totals[0], norm]).tolist()
        divergence = self._divergence(loss, norm_value)
        if divergence is None:
            self.optimizer.step()
            self._update_alpha(totals)
            if loss:  # it is 0 where a step has nothing to learn, which says nothing of the next ones
                position.first = loss if position.first is None else position.first
                position.recent.append(loss)
        return divergence

    def _divergence(self, loss: float, norm: float) -> tuple[str, float] | None:
        if not math.isfinite(loss):
            return "loss", loss
        if not math.isfinite(norm):
            return "norm of the gradient", norm
        first, recent = self.position.first, self.position.recent
        if self.saving is not None and first is not None and is_spike(loss, first, list(recent)):
            return f"loss, over {SPIKE:g} times that of the steps before,", loss
        return None

    def _update_alpha(self, totals: Tensor) -> None:
        """Set α so that states and logits weigh the same in the next step; keep it if nothing was learnt."""
        if self.distillation.states is None:
            return
        loss, states_loss = totals
        alpha = self.distillation.alpha
        balanced = (loss - alpha * states_loss) / states_loss.clamp(min=1e-12)
        alpha.copy_(torch.where(states_loss > 0, balanced, alpha))

    def _roll_back(self, what: str, value: float) -> None:
        """Continue from the last checkpoint at half the rate; fail the second time.

        Raises:
            DivergenceError: names what diverged and where, both times.
        """
        step, earlier = self.position.step + 1, self.position.setback
        if self.saving is None or earlier is not None:
            after = "" if earlier is None else f", after {earlier}"
            raise DivergenceError(f"the {what} is {value:.4g} at step {step}{after}")
        restored = self.saving.restore()
        assert restored is not None, "a training that is saved begins with a checkpoint"
        tokens_before = self.tokens
        self.position = restored
        rate = self.schedule.peak_rate * _ROLLBACK_RATE
        restored.setback = Rollback(step, what, value, restored.step, rate)
        self.monitor.advance(self.tokens - tokens_before)
        self._save()

    def _validate(self) -> None:
        if self.monitor.validate is None or not self.monitor.times:
            return
        with unsharded(self.gradient.module):
            loss = from_main_process(self.monitor.validate(self.student), self.accelerator)
        self.position.curve.append((self.tokens, loss))
        if self.best is None:
            return
        last = self.position.step == self.schedule.steps
        self.best.update(self.student, self.tokens, loss, last=last)
        self.ended_early = has_worsened(self.position.curve)
        if self.ended_early and self.best.tokens is None:
            raise DivergenceError(self.ended_early)

    def _save(self) -> None:
        assert self.saving is not None
        self.position.seconds = began = self.seconds
        self.saving.save(self.position)
        self.saving.save_seconds = self.seconds - began
