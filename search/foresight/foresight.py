"""What the rungs foretold and how it turned out: the order of candidates, their loss after retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search.foresight.learning_curve import INTERVAL, coverage, forecast
from search.rungs.evaluation import Retrained
from search.rungs.rung import Rung
from search.rungs.stability import rank_correlations
from space.enumeration.search_space import SearchSpace


def foresight(
    rungs: Sequence[Rung], space: SearchSpace, retrained: Sequence[Retrained], tokens: int, teacher: float
) -> dict[str, Any]:
    """``rank_correlation`` and ``forecast``, as ``summary.schema.json`` describes them.

    Args:
        rungs: of the search, rung 0 first.
        space: that counts parameters.
        retrained: all of them; models that are not kept are passed over.
        tokens: of retraining.
        teacher: loss of the teacher, in nats per token.
    """
    outcomes = {r.label: r.loss for r in retrained if r.loss is not None and r.path}
    return {
        "rank_correlation": rank_correlations({**_orders(rungs, space), "retraining": outcomes}),
        "forecast": _forecast(rungs, outcomes, tokens, teacher),
    }


def _orders(rungs: Sequence[Rung], space: SearchSpace) -> dict[str, dict[str, float]]:
    """The largest first, as a baseline, then by the loss at each rung."""
    orders: dict[str, dict[str, float]] = {"parameters": {}}
    for rung in rungs:
        complete = rung.complete()
        orders[f"rung {rung.index}"] = {
            r.label: r.evaluation.values["loss"] for r in complete if r.evaluation
        }
        orders["parameters"] |= {r.label: float(-space.parameters_of(r.architecture)) for r in complete}
    return orders


def _forecast(
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
