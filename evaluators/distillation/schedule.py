"""The learning-rate schedule of a training, and the rules that detect divergence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ScheduleShape(StrEnum):
    """The course of the learning rate after the warm-up."""

    COSINE = "cosine"
    """Cosine decay to a tenth of the peak."""
    WSD = "wsd"
    """Warmup-stable-decay (arXiv 2404.06395): constant, then linear decay to a tenth of the peak over the
    last fifth."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of one distillation and the learning rate at each."""

    tokens: int
    """Training tokens in all."""
    blocks: int
    """Blocks per step."""
    block: int
    """T, tokens per block."""
    peak_rate: float
    """AdamW's learning rate after the warm-up."""
    shape: ScheduleShape = ScheduleShape.COSINE
    warm_up_steps: int | None = None
    """Steps of linear warm-up; by default a tenth of all, at most 60. Trainings of different lengths that
    should begin with the same learning rates need a fixed number."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.blocks * self.block

    @property
    def steps(self) -> int:
        """Optimiser steps: the tokens, rounded to whole steps."""
        return max(1, round(self.tokens / self.tokens_per_step))

    @property
    def warm_up(self) -> int:
        """Steps of linear warm-up: as given, or a tenth of all, at most 60 (arXiv 2408.11796)."""
        return self.warm_up_steps or min(60, max(1, self.steps // 10))

    @property
    def decay_begins(self) -> int | None:
        """The first step of the decay after a constant rate; until then only the warm-up shapes the rate.

        None if the rate falls from the warm-up on.
        """
        if self.shape is ScheduleShape.COSINE:
            return None
        return min(self.steps, max(self.warm_up, self.steps - max(1, round(self.steps / 5))))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.peak_rate * (step + 1) / self.warm_up
        begins = self.decay_begins
        if begins is None:
            share = (step - self.warm_up) / max(1, self.steps - self.warm_up)
            return self.peak_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
        share = max(0, step + 1 - begins) / max(1, self.steps - begins)
        return self.peak_rate * (1 - 0.9 * share)


#: Trainings of fewer steps, and of fewer tokens a step, have a lower rate.
_FULL_RATE_STEPS, _FULL_RATE_TOKENS = 16, 2048


def peak_rate(parameters: int, steps: int | None = None, step_tokens: int | None = None) -> float:
    """Return a peak learning rate for a student's size: 1e-4 at 4B (arXiv 2408.11796), 4e-3 at a million.

    It is a power law through the two, constant below a million. It is lower by the root of the number of
    steps below 16: Adam's first steps are as long as the rate, whatever the gradients, which are divided by
    themselves there, and a short training is made of these. It is lower by the root of the tokens of a step
    below 2048, as their gradient is the noisier (studies/rates).

    Args:
        parameters: of the student.
        steps: of its training; None for many.
        step_tokens: of each step; None for many.
    """
    exponent = math.log(40) / math.log(4000)
    rate = 4e-3 * min(1.0, math.pow(1e6 / parameters, exponent))
    few = 1.0 if steps is None else min(1.0, steps / _FULL_RATE_STEPS)
    small = 1.0 if step_tokens is None else min(1.0, step_tokens / _FULL_RATE_TOKENS)
    return rate * math.sqrt(few * small)


#: A spike is a loss above this multiple of the median of the previous steps.
SPIKE = 4.0
#: Number of previous steps for that median, at most and at least.
RECENT = 32
_FEWEST = 8
#: A validation loss above this multiple of the best counts as worse.
_WORSE = 1.1


class DivergenceError(RuntimeError):
    """A student's loss or gradient is not finite, or its loss has risen beyond recovery."""


@dataclass(frozen=True)
class Rollback:
    """A return to the last checkpoint after a divergence.

    Attributes:
        step: the step at which the training diverged, counted from 1.
        what: the quantity that diverged, the loss or the norm of the gradient.
        value: its value.
        back_to: number of steps that were kept.
        rate: peak learning rate since then.
    """

    step: int
    what: str
    value: float
    back_to: int
    rate: float

    def __str__(self) -> str:
        return (
            f"the {self.what} was {self.value:.4g} at step {self.step}; "
            f"the training went on from step {self.back_to} with a peak rate of {self.rate:.3g}"
        )


def is_spike(loss: float, first: float, recent: Sequence[float]) -> bool:
    """Return whether a step's loss is a spike that a student does not recover from.

    It has to exceed four times the median of up to 32 previous steps, and the loss of the very first step.
    Both are needed: batches differ in difficulty, near zero by large factors; and gradients are clipped, so
    a student usually recovers from a loss below its first one. The remedy is that of PaLM: restart from
    before the spike (arXiv 2204.02311, section 5.1).

    Args:
        loss: loss of the step, averaged over its tokens.
        first: loss of the first step.
        recent: losses of the previous steps, oldest first.
    """
    if len(recent) < _FEWEST:
        return False
    return loss > SPIKE * statistics.median(recent[-RECENT:]) and loss > first


def has_worsened(curve: Sequence[tuple[int, float]]) -> str | None:
    """Return why the validation losses should end a training; None if they should not.

    They should if the last is not finite, or if the last two exceed the best by more than a tenth. At 3 nats
    per token a tenth is a factor of 1.35 in perplexity, far above the noise of a training that works.

    Args:
        curve: (tokens, validation loss) of every validation, the latest last.
    """
    losses = [loss for _, loss in curve]
    tokens, loss = curve[-1]
    if not math.isfinite(loss):
        return f"the validation loss is {loss} after {tokens:,} tokens"
    best = min(losses)
    if len(losses) > 2 and min(losses[-2:]) > _WORSE * best:
        return (
            f"the validation loss rose from {best:.4f} to {losses[-2]:.4f} and {loss:.4f} "
            f"after {tokens:,} tokens"
        )
    return None
