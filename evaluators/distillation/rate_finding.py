"""A peak learning rate that is found: short trainings of one student at rates by halving, a range test.

A rule for the peak rate knows the size of a student and not where it starts from. A student that starts
closer to its teacher, by a better basis or a repair, is undone by a rate that suits one which has more to
learn again. So a copy of one student is trained for a few dozen steps at the rule's rate and at powers of
two times it, all on the same batches and each with its own decay: before the rate has fallen, a loss at a
high rate tells little.

The loss is taken as a function of the logarithm of the rate that falls and then rises: the search goes
down or up from the rule's rate while the loss falls, and the best rate is then within one halving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

#: Steps of each training, if the first rung has no fewer: a warm-up of three steps, and decay over the rest.
STEPS = 32
#: The rates that are tried, as powers of two times the rule's: from 1/64 to 4.
LOWEST, HIGHEST = -6, 2
#: Trainings that are reckoned with: the rule's rate, its two neighbours and one more.
EXPECTED_TRAININGS = 4


@dataclass(frozen=True)
class FoundRate:
    """The peak rate that a range test found."""

    factor: float
    """The found rate over the rule's."""
    curve: tuple[tuple[float, float], ...]
    """(peak rate, loss after the training) of every training, by rate; the loss is inf if it diverged."""
    tokens: int
    """Training tokens of all trainings."""
    loss_before: float
    """Loss straight after pruning."""
    improves: bool = True
    """Whether the student is better at that rate than straight after pruning; if not, it was not tried."""


@dataclass(frozen=True)
class RangeTest:
    """The trainings of one student so far, and what follows from them.

    A loss that is not below that straight after pruning counts as a failure, like a training that diverged.
    """

    rule: float
    """Peak rate by the rule for the student's size."""
    loss_before: float
    """Loss straight after pruning, nats per token."""
    tokens: int
    """Of each training."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """Loss after the training at ``rule`` times 2 to the power of the key; inf if it diverged."""

    def rate(self, exponent: int) -> float:
        """Return the peak rate of a training."""
        return self.rule * 2.0**exponent

    @property
    def best(self) -> int | None:
        """The exponent of the lowest loss, of equal ones nearest the rule; None if no training helped."""
        helped = [key for key, loss in self.losses.items() if loss < self.loss_before]
        return min(helped, key=lambda key: (self.losses[key], abs(key), key), default=None)

    @property
    def next(self) -> int | None:
        """The exponent of the rate to try next; None if the test is over.

        Until a training helps, rates are halved; then the neighbours of the best are tried, the lower first.
        """
        if not self.losses:
            return 0
        waiting = [min(self.losses) - 1] if self.best is None else [self.best - 1, self.best + 1]
        open_ones = [key for key in waiting if key not in self.losses and LOWEST <= key <= HIGHEST]
        return open_ones[0] if open_ones else None

    @property
    def found(self) -> FoundRate:
        """What was found: the best rate, or half of the lowest one that was tried if none of them helped."""
        best = self.best
        exponent = min(self.losses, default=1) - 1 if best is None else best
        curve = tuple((self.rate(key), self.losses[key]) for key in sorted(self.losses))
        spent = self.tokens * len(self.losses)
        return FoundRate(2.0**exponent, curve, spent, self.loss_before, improves=best is not None)

    def plus(self, exponent: int, loss: float) -> RangeTest:
        """Return a copy with one more training; a loss that is not a number counts as infinite."""
        return replace(self, losses={**self.losses, exponent: math.inf if math.isnan(loss) else loss})


def find_rate(
    test: RangeTest, loss_at: Callable[[float], float], keep: Callable[[RangeTest], None]
) -> RangeTest:
    """Run what is left of a range test.

    Args:
        test: the trainings so far.
        loss_at: trains a fresh copy of the student at a peak rate, and returns its loss; inf if it diverged.
        keep: called after every training with the test so far.
    """
    while (exponent := test.next) is not None:
        test = test.plus(exponent, loss_at(test.rate(exponent)))
        keep(test)
    return test
