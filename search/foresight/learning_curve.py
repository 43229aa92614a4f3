"""What a candidate's loss will be after retraining, from those at its rungs, and whether it came true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from search.foresight.learning_law import Curve, ends

#: How often an interval is meant to hold.
INTERVAL = 0.9
#: Two evaluations of one model, in bfloat16 and in float32, differ by no more, in nats per token (measured on
#: 31 students of the embedded teacher: 0.0004 at most).
_REPEAT = 0.0005


@dataclass(frozen=True)
class Forecast:
    """A loss in nats per token, and between what it lies nine times in ten."""

    loss: float
    """The median."""
    low: float
    high: float


@dataclass(frozen=True)
class Coverage:
    """How forecasts stand against what came."""

    held: int
    """Outcomes within their interval."""
    outcomes: int
    absolute_error: float | None
    """Mean over the outcomes of how far the forecast was off, in nats per token; None without any."""


def forecast(curves: Mapping[str, Curve], tokens: int, teacher: float) -> dict[str, Forecast]:
    """The loss of every candidate after a training on ``tokens`` tokens; the law is in ``learning_law``.

    Args:
        curves: of each candidate by label, (tokens, loss in nats per token) at the end of each of its rungs,
            every one a training of its own from the pruned weights; rung 0 is at 0 tokens. What lies beyond
            ``tokens`` is passed over, and so is a candidate that has nothing else.
        tokens: of the training whose end is forecast, at least 1.
        teacher: loss of the teacher, which students approach, in nats per token.

    Raises:
        ValueError: a loss is not finite.
    """
    within = {
        label: sorted(point for point in curve if point[0] <= tokens) for label, curve in curves.items()
    }
    known = {label: within[label] for label in sorted(within) if within[label]}
    if not all(math.isfinite(loss) for curve in known.values() for _, loss in curve):
        raise ValueError("a learning curve holds a loss that is not a finite number")
    if not known:
        return {}
    drawn = ends(list(known.values()), tokens, teacher)
    shares = [(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2]
    rows = dict(zip(known, np.quantile(drawn, shares, axis=0).T.tolist(), strict=True))
    return {label: _forecast(*rows[label]) for label in curves if label in rows}


def _forecast(low: float, median: float, high: float) -> Forecast:
    return Forecast(median, low - _REPEAT, high + _REPEAT)


def coverage(forecasts: Mapping[str, Forecast], outcomes: Mapping[str, float]) -> Coverage:
    """How often the interval held, over the candidates that have both a forecast and an outcome.

    Args:
        forecasts: by label.
        outcomes: loss after retraining in nats per token, by label.
    """
    pairs = [(forecasts[label], loss) for label, loss in outcomes.items() if label in forecasts]
    held = sum(one.low <= loss <= one.high for one, loss in pairs)
    errors = [abs(one.loss - loss) for one, loss in pairs]
    return Coverage(held, len(pairs), float(np.mean(errors)) if errors else None)
