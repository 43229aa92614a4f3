"""Which of the retrained models to take, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from search.rungs.evaluation import BY_HAND, RANDOM_WEIGHTS, SEARCH, Retrained
from search.rungs.rung import Rung
from search.storage.whole_file import write_whole


class Contender(Protocol):
    """A retrained model, whoever holds its figures."""

    @property
    def label(self) -> str:
        """Of its architecture."""

    @property
    def origin(self) -> str:
        """Who proposed it."""

    @property
    def loss(self) -> float | None:
        """Nats per token; None if it failed."""


T = TypeVar("T", bound=Contender)


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


def contenders(results: Sequence[T]) -> list[T]:
    """Those with a loss, the lowest first; each model once, and none from random weights."""
    unique = {result.label: result for result in results if result.origin != RANDOM_WEIGHTS}
    ready = [(one.loss, number, one) for number, one in enumerate(unique.values()) if one.loss is not None]
    return [one for _, _, one in sorted(ready, key=lambda entry: entry[:2])]


def keep_choice(path: Path, choice: Choice | None) -> None:
    """Write down a person's choice, which stands when the run is gone through again; None takes it back."""
    if choice is None:
        path.unlink(missing_ok=True)
    else:
        write_whole(path, json.dumps(asdict(choice), ensure_ascii=False))


def kept_choice(path: Path, results: Sequence[Contender]) -> Choice | None:
    """What ``keep_choice`` wrote down, if it is one of these models."""
    if not path.exists():
        return None
    choice = Choice(**json.loads(path.read_text(encoding="utf-8")))
    return choice if choice.label in {one.label for one in contenders(results)} else None


def choose(results: Sequence[Contender], within: str = "") -> Choice | None:
    """The retrained model with the lowest loss, be it the search's or a hand-made baseline.

    Args:
        results: of retraining; failures and models from random weights are passed over.
        within: what else they have in common, for the reason.
    """
    ready = contenders(results)
    if not ready:
        return None
    best, loss = ready[0], ready[0].loss or 0.0
    others = f"lowest loss of {len(ready)} retrained models" if len(ready) > 1 else "the only retrained model"
    reason = f"{others}{within}, {loss:.4f} nats per token"
    if best.origin == BY_HAND:
        reason += "; it was named by hand"
    elif best.origin != SEARCH:
        return Choice(
            best.label,
            f"{reason}; it is the hand-made baseline {best.origin!r}: the search found none better",
        )
    beaten = next((one for one in ready if one.origin not in (SEARCH, BY_HAND)), None)
    if beaten is not None:
        gap = (beaten.loss or 0.0) - loss
        reason += f", {gap:.4f} below the best hand-made baseline ({beaten.origin})"
    return Choice(best.label, reason)
