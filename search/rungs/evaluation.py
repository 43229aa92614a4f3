"""Records of candidates: their evaluation at a rung of the search, and the result of retraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from space.axes.architecture import Architecture

#: Origins of architectures: proposed by the sampler, or by the user. Otherwise it is a baseline's name.
SEARCH, BY_HAND = "search", "by-hand"


class CandidateError(RuntimeError):
    """A candidate cannot be evaluated; the message is the reason, for users."""


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a candidate at a rung."""

    values: Mapping[str, float]
    """The value of every objective that was evaluated, by name."""
    tokens: int = 0
    """Training tokens of the short distillation."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Learning curve: (tokens, validation loss in nats per token)."""
    seconds: float = 0.0
    details: Mapping[str, float] = field(default_factory=dict)
    """Other figures worth showing, with units in their names; ``TASK:accuracy`` is that on a task."""

    @property
    def accuracies(self) -> dict[str, float]:
        """The accuracy on each task that is an objective."""
        ends = ":accuracy"
        return {name.removesuffix(ends): value for name, value in self.details.items() if name.endswith(ends)}


@dataclass(frozen=True)
class FinishedTrial:
    """One finished trial of a rung."""

    rung: int
    number: int
    architecture: Architecture
    origin: str
    """``search``, the name of a baseline, or ``by-hand`` for an architecture that the user asked for."""
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
        """Whether it has a loss of this rung; candidates over a bound are not distilled above rung 0."""
        return self.evaluation is not None and (self.feasible or self.rung == 0)

    def values(self, objectives: tuple[str, ...]) -> list[float]:
        """Return the values of the objectives in order; the trial has to be complete."""
        assert self.evaluation is not None, f"{self.label} failed"
        return [self.evaluation.values[name] for name in objectives]


#: Origin of the chosen architecture trained from random weights, as a baseline for pruning.
RANDOM_WEIGHTS = "random-weights"


@dataclass(frozen=True)
class Retrained:
    """A retrained model and its results."""

    architecture: Architecture
    origin: str
    loss: float | None
    """Nats per token of the model as saved; None if retraining failed."""
    bits_per_byte: float | None
    tokens: int
    seconds: float
    curve: list[tuple[int, float]]
    path: str | None
    """The saved model's path within the run directory; None if it was not kept."""
    failure: str | None = None
    note: str | None = None
    """A harmless departure from the plan: a step back, an early end, earlier weights."""
    short: bool = False
    """Whether it is a baseline behind the best one, or random weights, and had a quarter of the tokens."""
    branch_tokens: int = 0
    """Of ``tokens``, those of the shared branch from which this training continued."""
    objectives: Mapping[str, float] = field(default_factory=dict)
    """The objectives that are tasks, of the model as saved."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Other figures of these tasks."""

    @property
    def label(self) -> str:
        """The architecture's short name."""
        return self.architecture.label
