"""A training that goes wrong: how it is noticed, and what was done about it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

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
class Setback:
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
