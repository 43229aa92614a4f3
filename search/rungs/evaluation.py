"""What is found out about a candidate: at a rung of the search, and after retraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from space.axes.architecture import Architecture

#: Who proposed an architecture; otherwise it is the name of a baseline.
SEARCH, BY_HAND = "search", "by-hand"


class CandidateError(RuntimeError):
    """A candidate that cannot be evaluated; the message is the reason, for people."""


@dataclass(frozen=True)
class Evaluation:
    """What was found out about a candidate at a rung."""

    values: Mapping[str, float]
    """Every objective that was evaluated, by name."""
    tokens: int = 0
    """Spent on distillation."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(tokens, validation loss)."""
    seconds: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)
    """Other figures worth showing, with units in their names."""


@dataclass(frozen=True)
class FinishedTrial:
    """One finished trial."""

    rung: int
    number: int
    architecture: Architecture
    origin: str
    """``search``, the name of a baseline, or ``by-hand`` for what the user asked for."""
    evaluation: Evaluation | None
    """None if it failed."""
    failure: str | None
    feasible: bool = True
    """Whether it was evaluated and lies within the bounds."""

    @property
    def label(self) -> str:
        """The architecture's short name."""
        return self.architecture.label

    @property
    def scored(self) -> bool:
        """Whether it has a loss of its rung; what is over a bound is not distilled."""
        return self.evaluation is not None and (self.feasible or self.rung == 0)

    def values(self, objectives: tuple[str, ...]) -> list[float]:
        """The objectives in order; the trial has to be complete."""
        assert self.evaluation is not None, f"{self.label} failed"
        return [self.evaluation.values[name] for name in objectives]


#: The chosen architecture trained from random weights: what pruning is worth.
RANDOM_WEIGHTS = "random-weights"


@dataclass(frozen=True)
class Retrained:
    """A retrained model and its figures."""

    architecture: Architecture
    origin: str
    loss: float | None
    """Nats per token of the model as written; None if it failed."""
    bits_per_byte: float | None
    tokens: int
    seconds: float
    curve: list[tuple[int, float]]
    path: str | None
    """Of the model, within the run directory."""
    failure: str | None = None
    note: str | None = None
    """What went otherwise than planned and did no harm: a step back, an early end, earlier weights."""
    branch_tokens: int = 0
    """Of its tokens those of a branch that it went on from."""

    @property
    def label(self) -> str:
        """The architecture's short name."""
        return self.architecture.label
