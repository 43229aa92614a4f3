"""A training from where it is to its end: steps, validations, checkpoints, and one step back."""

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
from evaluators.distillation.efficiency import compiled_blocks, compiling_pays, training_attention
from evaluators.distillation.processes import Gradient, from_main_process, on_main_process, unsharded
from evaluators.distillation.saving import BestWeights, TrainingFiles
from evaluators.distillation.schedule import SPIKE, DivergenceError, Rollback, has_worsened, is_spike
from evaluators.distillation.states import StateKind, layers_of
from space.input_error import InputError

#: Of the learning rate after a step back.
_SLOWER = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainingMonitor:
    """Who looks on while a student learns."""

    validate: Callable[[PreTrainedModel], float] | None = None
    """The validation loss of the student, taken ``times`` times at equal distances."""
    times: int = 0
    advance: Callable[[int], None] = field(default=lambda tokens: None)
    """Told the tokens of each step, and after a step back, below zero, those that were lost."""


class Training:
    """The state of a training."""

    def __init__(
        self,
        gradient: Gradient,
        optimizer: torch.optim.Optimizer,
        watch: TrainingMonitor,
        saving: TrainingFiles | None,
        best: BestWeights | None,
        began: float,
    ) -> None:
        """Go to where an earlier process left the training, and see that there is a checkpoint.

        Args:
            gradient: of each step.
            optimizer: as Accelerate prepared it.
            watch: validation and progress.
            saving: the checkpoints; without any a training that goes wrong fails at once.
            best: keeps the best weights, if they are asked for.
            began: on ``time.monotonic``.
        """
        self.gradient, self.optimizer, self.watch = gradient, optimizer, watch
        self.schedule, self.accelerator = gradient.schedule, gradient.accelerator
        self.distillation, self.student = gradient.distillation, gradient.distillation.student
        self.saving, self.best, self.began = saving, best, began
        self.ended_early: str | None = None
        self.compiles = self._compiling_pays()
        own = None if saving is None else saving.back()
        branch = None if saving is None or own else saving.from_branch()
        self.position = own or branch or Position(0, [], 0.0)
        self.began -= self.position.seconds
        if saving is not None and own is None:
            self._save()
        watch.advance(self.tokens)

    @property
    def tokens(self) -> int:
        """Learnt from so far."""
        return self.position.step * self.schedule.tokens_per_step

    @property
    def seconds(self) -> float:
        """Spent so far, as if it had never been stopped."""
        return time.monotonic() - self.began

    def run(self, micro: int) -> None:
        """All that is left of the steps, by micro-batches of ``micro`` blocks, and of the validations.

        Called again after running out of memory, it goes on where it was.
        """
        self.gradient.agree(self.position.step, micro, self.optimizer)
        with self._no_process_leaves():
            while not self.ended_early and (end := self._next_end()) is not None:
                attention = training_attention(self.student, self.schedule.block, self.accelerator)
                with attention, self._compiled():
                    self._train(end, micro)
                if self.position.step == end:
                    self._validate()
        if self.best is not None:
            self.best.take(self.student, self.tokens)

    @contextmanager
    def _no_process_leaves(self) -> Iterator[None]:
        """Of several processes none may try smaller micro-batches by itself."""
        try:
            yield
        except Exception as error:
            if self.accelerator.num_processes == 1 or not should_reduce_batch_size(error):
                raise
            where = f"at step {self.position.step + 1}, with micro-batches that fitted before"
            raise RuntimeError(f"one of several processes has no memory left {where}") from error

    def _compiling_pays(self) -> bool:
        """Whether blocks are compiled: where that is repaid, and nothing listens within them."""
        compared = self.distillation.states
        if compared is not None and any(p.kind is StateKind.ATTENTION for p in compared.states.of_student):
            return False
        parameters = sum(one.numel() for one in self.student.parameters())
        return compiling_pays(self.accelerator.device, self.schedule.tokens, parameters)

    def _compiled(self) -> AbstractContextManager[None]:
        try:
            return compiled_blocks(layers_of(self.student)) if self.compiles else nullcontext()
        except InputError:  # no list of blocks
            return nullcontext()

    def _next_end(self) -> int | None:
        """The step to train to: the next validation, or the last step; None if all is done."""
        steps = self.schedule.steps
        times = min(self.watch.times, steps) if self.watch.validate else 0
        validated = self.position.curve[-1][0] if self.position.curve else 0
        ends = [-(-steps * number // times) for number in range(1, times + 1)]
        for end in ends:
            if end * self.schedule.tokens_per_step > validated and end >= self.position.step:
                return end
        return steps if self.position.step < steps else None

    def _train(self, end: int, micro: int) -> None:
        """Go on to a step, or to a step back."""
        while self.position.step < end:
            if self.saving is not None:
                self.saving.save_branch(self.position)
            trouble = self._step(micro)
            if trouble is not None:
                self._step_back(*trouble)
                return
            self.position.step += 1
            self.watch.advance(self.schedule.tokens_per_step)
            if self.saving is not None:
                due = self.saving.is_due(self.seconds - self.position.seconds)
                if on_main_process(due, self.accelerator):
                    self._save()

    def _step(self, micro: int) -> tuple[str, float] | None:
        """One step of the optimiser; not taken if anything went wrong, and then what, and its value."""
        position = self.position
        self.optimizer.zero_grad(set_to_none=True)
        if self.distillation.states is not None and position.step == 0:
            self._weigh(self.gradient.of(0, micro, learn=False))
        slower = _SLOWER if position.setback else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(position.step) * slower
        totals = self.gradient.of(position.step, micro)
        norm = self.accelerator.clip_grad_norm_(self.gradient.module.parameters(), 1.0)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        loss, size = torch.stack([totals[0], norm]).tolist()
        trouble = self._trouble(loss, size)
        if trouble is None:
            self.optimizer.step()
            self._weigh(totals)
            position.first = loss if position.first is None else position.first
            position.recent.append(loss)
        return trouble

    def _trouble(self, loss: float, norm: float) -> tuple[str, float] | None:
        if not math.isfinite(loss):
            return "loss", loss
        if not math.isfinite(norm):
            return "norm of the gradient", norm
        first, recent = self.position.first, self.position.recent
        if self.saving is not None and first is not None and is_spike(loss, first, list(recent)):
            return f"loss, over {SPIKE:g} times that of the steps before,", loss
        return None

    def _weigh(self, totals: Tensor) -> None:
        """Let the states weigh as much as the logits in the step to come."""
        if self.distillation.states is None:
            return
        loss, apart = totals
        alpha = self.distillation.alpha
        alpha.copy_((loss - alpha * apart) / apart.clamp(min=1e-12))

    def _step_back(self, what: str, value: float) -> None:
        """Go on from the last checkpoint, at half the rate; the second time is the last.

        Raises:
            DivergenceError: with what was seen, and where, both times.
        """
        at, before = self.position.step + 1, self.position.setback
        if self.saving is None or before is not None:
            earlier = "" if before is None else f", after {before}"
            raise DivergenceError(f"the {what} is {value:.4g} at step {at}{earlier}")
        found = self.saving.back()
        assert found is not None, "a training that is saved begins with a checkpoint"
        lost = self.tokens
        self.position = found
        rate = self.schedule.peak_rate * _SLOWER
        found.setback = Rollback(at, what, value, found.step, rate)
        self.watch.advance(self.tokens - lost)
        self._save()

    def _validate(self) -> None:
        if self.watch.validate is None or not self.watch.times:
            return
        with unsharded(self.gradient.module):
            loss = from_main_process(self.watch.validate(self.student), self.accelerator)
        self.position.curve.append((self.tokens, loss))
        if self.best is None:
            return
        last = self.position.step == self.schedule.steps
        self.best.tell(self.student, self.tokens, loss, last=last)
        self.ended_early = has_worsened(self.position.curve)
        if self.ended_early and self.best.tokens is None:
            raise DivergenceError(self.ended_early)

    def _save(self) -> None:
        assert self.saving is not None
        self.position.seconds = began = self.seconds
        self.saving.save(self.position)
        self.saving.took = self.seconds - began


Advance = Callable[[int], None]
"""Told the tokens of each step."""
