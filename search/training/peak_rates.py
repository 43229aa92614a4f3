"""The peak learning rate of each training: the rule's for a student's size, times what was found."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.distillation.schedule import peak_rate

#: The best peak rate as a power of the tokens of a training (studies/rates); 0: the same at every length.
LENGTH_EXPONENT = 0.0


@dataclass(frozen=True)
class PeakRates:
    """The peak rates of a run's trainings; by default those of the rule."""

    given: float | None = None
    """The rate of every training, if the user named it."""
    factor: float = 1.0
    """The found rate over the rule's."""
    tokens: int | None = None
    """Tokens of the trainings that it was found with; None if all lengths have the same rate."""

    def of(self, parameters: int, tokens: int) -> float:
        """Return the peak rate of a training of a pruned student.

        Args:
            parameters: of the student.
            tokens: of the training.
        """
        if self.given is not None:
            return self.given
        longer = 1.0 if self.tokens is None else tokens / self.tokens
        scale: float = longer**LENGTH_EXPONENT
        return self.factor * peak_rate(parameters) * scale

    def from_random_weights(self, parameters: int) -> float:
        """Return the peak rate of a student that was not pruned: the rule's, as none was found for it."""
        return peak_rate(parameters) if self.given is None else self.given


#: Rates by the rule alone.
BY_RULE = PeakRates()
