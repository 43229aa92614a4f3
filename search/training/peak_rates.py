"""The peak learning rate of each training: the rule's for its student and steps, times what was found."""

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

    def of(self, config: RunConfig, parameters: int, tokens: int) -> float:
        """Return the peak rate of a training of a pruned student.

        Args:
            config: the run.
            parameters: of the student.
            tokens: of the training.
        """
        return self.factor * rule(config, parameters, tokens) if self.given is None else self.given

    def from_random_weights(self, config: RunConfig, parameters: int, tokens: int) -> float:
        """Return the peak rate of a student that was not pruned: the rule's, as none was found for it."""
        return rule(config, parameters, tokens) if self.given is None else self.given


#: Rates by the rule alone.
BY_RULE = PeakRates()


def rule(config: RunConfig, parameters: int, tokens: int) -> float:
    """Return the rule's peak rate of a training.

    Under WSD longer trainings go on from shorter ones, so that the rate is the same for all lengths.
    """
    step = config.batch_blocks * config.block
    steps = max(1, round(tokens / step)) if config.schedule == ScheduleShape.COSINE else None
    return peak_rate(parameters, steps, step)
