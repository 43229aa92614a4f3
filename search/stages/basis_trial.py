"""What was found when the bases of hidden were tried out, kept so that no student is distilled twice."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from search.storage.whole_file import write_whole
from space.cutting.basis import BasisName


@dataclass(frozen=True)
class Tried:
    """One student of the trial."""

    basis: str
    origin: str
    """Of the baselines."""
    label: str
    parameters: int
    loss: float | None
    """Validation loss after the tokens of the trial, nats per token; None if it could not be trained."""


@dataclass(frozen=True)
class BasisTrial:
    """What the trial of the bases came to."""

    tokens: int
    """Of distillation, for each student."""
    tried: Sequence[Tried]

    @property
    def basis(self) -> str:
        """The one with the best student; of equal ones the first; coordinates if there is none."""
        best = min(self.tried, key=_loss, default=None)
        return BasisName.COORDINATE.value if best is None else best.basis

    @property
    def reason(self) -> str:
        """In words, for the report and the terminal."""
        if all(one.loss is None for one in self.tried):
            return (
                f"hidden is cut along the {self.basis} basis: no hand-made student could be trained to tell"
            )
        best = {basis: self._best(basis) for basis in dict.fromkeys(one.basis for one in self.tried)}
        losses = " and ".join(f"{one.loss:.4f} ({basis})" for basis, one in best.items() if one.loss)
        return (
            f"hidden is cut along the {self.basis} basis: after {self.tokens:,} tokens the best hand-made "
            f"student has a loss of {losses}"
        )

    def _best(self, basis: str) -> Tried:
        return min((one for one in self.tried if one.basis == basis), key=_loss)

    def plus(self, one: Tried) -> BasisTrial:
        """With one more student."""
        return replace(self, tried=[*self.tried, one])

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_whole(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path, tokens: int) -> BasisTrial:
        """Read what ``save`` wrote; one without students if there is nothing."""
        if not path.exists():
            return cls(tokens, [])
        about = json.loads(path.read_text())
        return cls(about["tokens"], [Tried(**one) for one in about["tried"]])


def _loss(one: Tried) -> float:
    return math.inf if one.loss is None else one.loss
