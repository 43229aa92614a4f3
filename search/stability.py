"""How far the order of candidates at one rung foretells their order at another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import kendalltau

#: Candidates from which an order is judged, and the probability below which it is none by chance.
_FEWEST, _CHANCE = 8, 0.05


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


def says_nothing(earlier: Sequence[float], later: Sequence[float]) -> bool:
    """Whether an order of candidates cannot be told from one by chance, seen by another order of them.

    By Kendall's tau, one-sided, at 5%; of fewer than eight candidates nothing can be said.

    Args:
        earlier: a figure of each candidate.
        later: another figure of the same candidates.
    """
    if len(earlier) < _FEWEST:
        return False
    chance = float(kendalltau(earlier, later, alternative="greater").pvalue)
    return not chance < _CHANCE  # all equal gives no number, and says nothing
