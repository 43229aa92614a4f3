"""What curves of loss over rate say: the best rate, what a range test finds, and how the best moves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from evaluators.distillation.rate_finding import RangeTest, find_rate

Curve = Mapping[int, float]
"""Loss by the exponent of the rate: powers of two times the rule's; inf if the training diverged."""


def mean_curve(seeds: Mapping[int, Curve]) -> dict[int, float]:
    """Return the mean over the seeds, at the rates that all of them have."""
    shared = set.intersection(*(set(curve) for curve in seeds.values()))
    return {key: statistics.mean(curve[key] for curve in seeds.values()) for key in sorted(shared)}


def best_exponent(curve: Curve) -> float:
    """Return where the loss is lowest, by a parabola through the best rate and its neighbours.

    At the edge of the curve, or beside a training that diverged, it is the best rate itself.
    """
    best = min(curve, key=lambda key: curve[key])
    low, middle, high = (curve.get(best + step, math.inf) for step in (-1, 0, 1))
    bend = low - 2 * middle + high
    return best + (low - high) / (2 * bend) if 0 < bend < math.inf else float(best)


def factor_found(curve: Curve, before: float) -> int:
    """Return the exponent that a range test finds; beyond the rates of the curve nothing helps.

    Args:
        curve: losses of the test's trainings.
        before: loss straight after pruning.
    """
    rule = 1.0
    test = RangeTest(rule, before, tokens=0)
    done = find_rate(test, lambda rate: curve.get(round(math.log2(rate)), math.inf), lambda test: None)
    return round(math.log2(done.found.factor))


def length_exponent(best: Mapping[int, float]) -> float:
    """Return the exponent of the best rate as a power of the number of steps, by least squares.

    Args:
        best: exponent of two of the best rate, by steps; at least two lengths.
    """
    steps = [math.log2(number) for number in best]
    return statistics.linear_regression(steps, list(best.values())).slope
