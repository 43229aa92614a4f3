"""How far the order of candidates at one rung foretells their order at another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from scipy.stats import kendalltau


def rank_correlations(orders: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Kendall's tau-b between every two orders, over the candidates that both hold.

    Args:
        orders: name of the order (``parameters``, ``rung 0``, …, ``retraining``) to the figure of each
            candidate by label; earlier names come before later ones.
    """
    return [_correlation(*first, *second) for first, second in itertools.combinations(orders.items(), 2)]


def _correlation(
    first: str, one: Mapping[str, float], second: str, other: Mapping[str, float]
) -> dict[str, Any]:
    labels = [label for label in one if label in other]
    tau = math.nan
    if len(labels) > 1:
        tau = float(
            kendalltau([one[label] for label in labels], [other[label] for label in labels]).statistic
        )
    return {
        "from": first,
        "to": second,
        "kendall_tau": None if math.isnan(tau) else tau,
        "candidates": len(labels),
    }
