"""The peak learning rate of each training: the rule's for size and steps, times what was found."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.distillation.schedule import ScheduleShape, peak_rate
from search.settings.config import RunConfig


@dataclass(frozen=True)
class PeakRates:
    """The peak rates of a run's trainings; by default those of the rule."""

    given: float | None = None
    """The rate of every training, if the user named it."""
    factor: float = 1.0
    """The found rate over the rule's."""

    def of(self, parameters: int, steps: int | None) -> float:
        """Return the peak rate of a training of a pruned student.

        Args:
            parameters: of the student.
            steps: of the training, from ``steps_for_rate``.
        """
        return self.factor * peak_rate(parameters, steps) if self.given is None else self.given

    def from_random_weights(self, parameters: int, steps: int | None) -> float:
        """Return the peak rate of a student that was not pruned: the rule's, as none was found for it."""
        return peak_rate(parameters, steps) if self.given is None else self.given


#: Rates by the rule alone.
BY_RULE = PeakRates()


def steps_for_rate(config: RunConfig, tokens: int) -> int | None:
    """Return the optimiser steps of a training, by which the rule goes; None where it must not.

    Under WSD longer trainings go on from shorter ones, so all have the same rate.
    """
    if config.schedule != ScheduleShape.COSINE:
        return None
    return max(1, round(tokens / (config.batch_blocks * config.block)))
