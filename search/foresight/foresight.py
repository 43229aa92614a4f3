"""Forecast losses after retraining from the rungs, and compare rungs and forecasts with the outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.foresight.learning_law import Curve, posterior_losses
from search.rungs.bracket import rank_correlations
from search.rungs.evaluation import Retrained
from search.rungs.rung import Rung
from space.enumeration.search_space import SearchSpace

#: Nominal coverage of a forecast's interval.
INTERVAL = 0.9
#: Two evaluations of one model, in bfloat16 and in float32, differ by no more, in nats per token (measured on
#: 31 students of the embedded teacher: 0.0004 at most).
_REPEATABILITY = 0.0005


@dataclass(frozen=True)
class Forecast:
    """A forecast of a loss in nats per token, with a 90% interval."""

    loss: float
    """The median."""
    low: float
    high: float


@dataclass(frozen=True)
class Coverage:
    """How well forecasts agree with the outcomes."""

    held: int
    """Number of outcomes within their interval."""
    outcomes: int
    absolute_error: float | None
    """Mean absolute error of the forecasts in nats per token; None without outcomes."""


def forecast(curves: Mapping[str, Curve], tokens: int, teacher: float) -> dict[str, Forecast]:
    """Forecast the loss of every candidate after training on ``tokens`` tokens, by ``learning_law``.

    Args:
        curves: by label, (tokens, loss in nats per token) at the end of each rung of a candidate. Each rung
            trains afresh from the pruned weights; rung 0 is at 0 tokens. Points beyond ``tokens`` are
            ignored, and so are candidates without other points.
        tokens: of the training to forecast, at least 1.
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
    drawn = posterior_losses(list(known.values()), tokens, teacher)
    shares = [(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2]
    rows = dict(zip(known, np.quantile(drawn, shares, axis=0).T.tolist(), strict=True))
    return {label: _forecast(*rows[label]) for label in curves if label in rows}


def _forecast(low: float, median: float, high: float) -> Forecast:
    return Forecast(median, low - _REPEATABILITY, high + _REPEATABILITY)


def coverage(forecasts: Mapping[str, Forecast], outcomes: Mapping[str, float]) -> Coverage:
    """Return how well the forecasts agree with the outcomes, over the candidates that have both.

    Args:
        forecasts: by label.
        outcomes: loss after retraining in nats per token, by label.
    """
    pairs = [(forecasts[label], loss) for label, loss in outcomes.items() if label in forecasts]
    held = sum(one.low <= loss <= one.high for one, loss in pairs)
    errors = [abs(one.loss - loss) for one, loss in pairs]
    return Coverage(held, len(pairs), float(np.mean(errors)) if errors else None)


def foresight(
    rungs: Sequence[Rung], space: SearchSpace, retrained: Sequence[Retrained], tokens: int, teacher: float
) -> dict[str, Any]:
    """Return ``rank_correlation`` and ``forecast`` of the summary, as ``summary.schema.json`` describes them.

    Args:
        rungs: of the search, rung 0 first.
        space: counts parameters.
        retrained: all retrained models; those that were not kept, or trained on fewer tokens, are ignored.
        tokens: of retraining.
        teacher: loss of the teacher, in nats per token.
    """
    outcomes = {r.label: r.loss for r in retrained if r.loss is not None and r.path and not r.short}
    return {
        "rank_correlation": rank_correlations({**_orders(rungs, space), "retraining": outcomes}),
        "forecast": _forecasts(rungs, outcomes, tokens, teacher),
    }


def _orders(rungs: Sequence[Rung], space: SearchSpace) -> dict[str, dict[str, float]]:
    """Return the orders by name: by size, the largest first, as a baseline, then by loss at each rung."""
    orders: dict[str, dict[str, float]] = {"parameters": {}}
    for rung in rungs:
        complete = rung.complete()
        orders[f"rung {rung.index}"] = {
            r.label: r.evaluation.values["loss"] for r in complete if r.evaluation
        }
        orders["parameters"] |= {r.label: float(-space.parameters_of(r.architecture)) for r in complete}
    return orders


def _forecasts(
    rungs: Sequence[Rung], outcomes: Mapping[str, float], tokens: int, teacher: float
) -> dict[str, Any]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in (record for rung in rungs for record in rung.complete()):
        if record.evaluation:
            point = (record.evaluation.tokens, record.evaluation.values["loss"])
            curves.setdefault(record.label, []).append(point)
    forecasts = forecast(curves, tokens, teacher)
    score = coverage(forecasts, outcomes)
    return {
        "tokens": tokens,
        "interval": INTERVAL,
        "candidates": [
            {
                "label": label,
                "loss": one.loss,
                "low": one.low,
                "high": one.high,
                "outcome": outcomes.get(label),
            }
            for label, one in forecasts.items()
        ],
        "held": score.held,
        "outcomes": score.outcomes,
        "absolute_error": score.absolute_error,
    }
