"""How far the order of candidates at one rung foretells that at another, and what trust in it costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from scipy.stats import kendalltau

#: Candidates from which an order is judged, and the probability below which it is none by chance.
_FEWEST, _CHANCE = 8, 0.05


def rank_correlations(orders: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Kendall's tau-b and the regret of the first between every two orders, over the candidates of both.

    The regret is what the candidate that the one order puts first has more, by the other order's figure, than
    the best there; the mean if several are first. Both are None for fewer than two candidates.

    Args:
        orders: name of the order (``parameters``, ``rung 0``, …, ``retraining``) to the figure of each
            candidate by label, the lower the better; earlier names come before later ones.
    """
    return [_compared(*first, *second) for first, second in itertools.combinations(orders.items(), 2)]


def _compared(
    first: str, one: Mapping[str, float], second: str, other: Mapping[str, float]
) -> dict[str, Any]:
    labels = [label for label in one if label in other]
    before, after = [one[label] for label in labels], [other[label] for label in labels]
    tau = float(kendalltau(before, after).statistic) if len(labels) > 1 else math.nan
    return {
        "from": first,
        "to": second,
        "kendall_tau": None if math.isnan(tau) else tau,
        "regret": _regret(before, after) if len(labels) > 1 else None,
        "candidates": len(labels),
    }


def _regret(before: Sequence[float], after: Sequence[float]) -> float:
    best = min(before)
    return mean(b for a, b in zip(before, after, strict=True) if a == best) - min(after)


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
