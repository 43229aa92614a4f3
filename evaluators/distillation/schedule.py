"""How long and how fast a student learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Shape(StrEnum):
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
    shape: Shape = Shape.COSINE
    warm_up_steps: int | None = None
    """Steps of linear warm-up; by default a tenth of all, at most 60. Trainings of different lengths whose
    rates are to be the same at first need a fixed number."""

    @property
    def tokens_a_step(self) -> int:
        """Tokens of one optimiser step."""
        return self.blocks * self.block

    @property
    def steps(self) -> int:
        """Optimiser steps: the tokens, rounded to whole steps."""
        return max(1, round(self.tokens / self.tokens_a_step))

    @property
    def warm_up(self) -> int:
        """Steps of linear warm-up: as given, or a tenth, at most 60 (arXiv 2408.11796)."""
        return self.warm_up_steps or min(60, max(1, self.steps // 10))

    @property
    def decay_begins(self) -> int | None:
        """The step with which a rate that was constant begins to fall: until then only the warm-up matters.

        None if the rate falls from the warm-up on.
        """
        if self.shape is Shape.COSINE:
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
