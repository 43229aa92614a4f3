"""Which of the retrained models to take, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search.retraining import RANDOM_WEIGHTS, Retrained
from search.rung import BY_HAND, SEARCH, Rung


@dataclass(frozen=True)
class Choice:
    """The model to take."""

    label: str
    reason: str


def eligible(results: Sequence[Retrained], rungs: Sequence[Rung]) -> list[Retrained]:
    """Those that may be chosen: where something measured is bounded, those that were found within."""
    if not rungs[-1].bounds:
        return list(results)
    records = [record for rung in rungs for record in rung.records()]
    within = {record.architecture for record in records if record.feasible}
    over = {record.architecture for record in records if record.evaluation and not record.feasible}
    return [result for result in results if result.architecture in within - over]


def choose(results: Sequence[Retrained]) -> Choice | None:
    """The retrained model with the lowest loss, be it the search's or a hand-made baseline.

    Args:
        results: of retraining; failures and models from random weights are passed over.
    """
    unique = {r.label: r for r in results if r.origin != RANDOM_WEIGHTS}
    ready = sorted(
        ((r.loss, number, r) for number, r in enumerate(unique.values()) if r.loss is not None),
        key=lambda entry: entry[:2],
    )
    if not ready:
        return None
    loss, _, best = ready[0]
    others = f"lowest loss of {len(ready)} retrained models" if len(ready) > 1 else "the only retrained model"
    reason = f"{others}, {loss:.4f} nats per token"
    if best.origin == BY_HAND:
        reason += "; it was named by hand"
    elif best.origin != SEARCH:
        return Choice(
            best.label,
            f"{reason}; it is the hand-made baseline {best.origin!r}: the search found none better",
        )
    beaten = [(other_loss, r.origin) for other_loss, _, r in ready if r.origin not in (SEARCH, BY_HAND)]
    if beaten:
        reason += f", {beaten[0][0] - loss:.4f} below the best hand-made baseline ({beaten[0][1]})"
    return Choice(best.label, reason)
