"""How long and how fast a student learns, and how a training that goes wrong is noticed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ScheduleShape(StrEnum):
    """How the learning rate goes after the warm-up."""

    COSINE = "cosine"
    """Half a cosine, down to a tenth of the peak."""
    WSD = "wsd"
    """Warm-up, stable, decay (arXiv 2404.06395): constant, then over the last fifth down to a tenth of the
    peak on a line."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of one distillation and the learning rate at each."""

    tokens: int
    """Training tokens in all."""
    blocks: int
    """Blocks a step."""
    block: int
    """T, tokens a block."""
    peak_rate: float
    """AdamW's learning rate after the warm-up."""
    shape: ScheduleShape = ScheduleShape.COSINE
    warm_up_steps: int | None = None
    """Steps of linear warm-up; by default a tenth of all, at most 60. Trainings of different lengths whose
    rates are to be the same at first need a fixed number."""

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
        """Steps of linear warm-up: as given, or a tenth, at most 60 (arXiv 2408.11796)."""
        return self.warm_up_steps or min(60, max(1, self.steps // 10))

    @property
    def decay_begins(self) -> int | None:
        """The step with which a rate that was constant begins to fall: until then only the warm-up matters.

        None if the rate falls from the warm-up on.
        """
        if self.shape is ScheduleShape.COSINE:
            return None
        return min(self.steps, max(self.warm_up, self.steps - max(1, round(self.steps / 5))))

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.peak_rate * (step + 1) / self.warm_up
        begins = self.decay_begins
        if begins is None:
            share = (step - self.warm_up) / max(1, self.steps - self.warm_up)
            return self.peak_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
        share = max(0, step + 1 - begins) / max(1, self.steps - begins)
        return self.peak_rate * (1 - 0.9 * share)


def peak_rate(parameters: int) -> float:
    """A learning rate by the student's size: 1e-4 at 4B as in arXiv 2408.11796, 3e-3 at a million.

    Between the two it falls with a power of the size.
    """
    exponent = math.log(30) / math.log(4000)
    return min(4e-3, 3e-3 * math.pow(1e6 / parameters, exponent))


#: A spike is so many times the median of the steps before it …
SPIKE = 4.0
#: … of so many of them …
RECENT = 32
#: … and of at least so many.
_FEWEST = 8
#: A validation loss so many times the best is worse beyond doubt.
_WORSE = 1.1


class DivergenceError(RuntimeError):
    """The loss of a student, or its gradient, stopped being a number, or went up beyond recovery."""


@dataclass(frozen=True)
class Rollback:
    """One step back: what was seen, and where the training went on.

    Attributes:
        step: at which it was seen, counted from 1.
        what: the loss, or the norm of the gradient.
        value: it had.
        back_to: steps that were kept.
        rate: the peak of the learning rate since.
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
    """Whether a step's loss says that what was learnt is lost.

    It has to be four times the median of up to 32 steps before it, and above the loss of the first step of
    all. Both are needed: batches differ in difficulty, and near zero by large factors; and gradients are
    clipped, so a student usually recovers from a loss that stays below the one it began with. What to do
    then is PaLM's: begin again from before the spike (arXiv 2204.02311, section 5.1).

    Args:
        loss: of the step, mean over its tokens.
        first: of the first step.
        recent: of the steps before it, oldest first.
    """
    if len(recent) < _FEWEST:
        return False
    return loss > SPIKE * statistics.median(recent[-RECENT:]) and loss > first


def has_worsened(curve: Sequence[tuple[int, float]]) -> str | None:
    """Why a training is ended by its validations; None if it is not.

    The loss is no number, or twice in a row more than a tenth above the best before. At 3 nats per token a
    tenth is a factor of 1.35 in perplexity, far more than validations of a training that learns differ by.

    Args:
        curve: (tokens, validation loss), the last one just taken.
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
