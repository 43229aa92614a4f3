"""How long and how fast a student learns."""

from __future__ import annotations

import math
from dataclasses import dataclass


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

    @property
    def steps(self) -> int:
        """Optimiser steps: the tokens, rounded to whole steps."""
        return max(1, round(self.tokens / (self.blocks * self.block)))

    @property
    def warm_up(self) -> int:
        """Steps of linear warm-up: a tenth, at most 60 (arXiv 2408.11796)."""
        return min(60, max(1, self.steps // 10))

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then a cosine down to a tenth of the peak."""
        if step < self.warm_up:
            return self.peak_rate * (step + 1) / self.warm_up
        share = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.peak_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


def peak_rate(parameters: int) -> float:
    """A learning rate by the student's size: 1e-4 at 4B as in arXiv 2408.11796, 3e-3 at a million.

    Between the two it falls with a power of the size.
    """
    exponent = math.log(30) / math.log(4000)
    return min(4e-3, 3e-3 * math.pow(1e6 / parameters, exponent))
