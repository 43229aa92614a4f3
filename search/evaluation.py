"""What the search asks about a candidate, and what it is told: the seam between searching and judging.

The search knows no model. It hands an architecture and a rung to an evaluator, which distils and measures
in a run, and looks up a table or a formula in studies and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from space.architecture import Architecture

if TYPE_CHECKING:
    from search.rung import Rung

Advance = Callable[[int], None]
"""Told the tokens of each step."""


class CandidateError(RuntimeError):
    """A candidate that cannot be evaluated; the message is the reason, for people."""


class LostProcessError(Exception):
    """The processes that evaluate together have lost each other: this worker can evaluate nothing more.

    Args:
        reason: for people.
        failed: whether it was this process that failed, and not another that is gone.
    """

    def __init__(self, reason: str, *, failed: bool = False) -> None:
        super().__init__(reason)
        self.failed = failed


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


class Evaluator(Protocol):
    """Judges candidates; whatever it is made of."""

    def evaluate(self, architecture: Architecture, rung: int, advance: Advance) -> Evaluation:
        """Score a candidate at a rung.

        Raises:
            CandidateError: with the reason; the search records it and goes on without the candidate.
            LostProcessError: this worker has to end. The candidate counts as one in which a worker died.
        """

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """Let go of what no candidate needs any more; called when a trial was told.

        Args:
            rungs: all, rung 0 first.
            candidates: how many each rung takes.
        """
