"""The pool of a nested training: who is drawn at a step, and who is left when it is narrowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.settings.bracket_plan import halved
from search.stages.nested import drawn_in_turn
from space.axes.architecture import Architecture


class Pool:
    """Architectures that are drawn in turn, each once before any comes again, in an order of their own.

    Args:
        members: the architectures.
        seed: of the order.
        begins: the step from which on this pool is drawn from.
    """

    def __init__(self, members: Sequence[Architecture], seed: int, begins: int = 0) -> None:
        self.members, self.seed, self.begins = list(members), seed, begins

    def draw(self, step: int) -> Architecture:
        """Return the architecture of a step."""
        return drawn_in_turn(self.members, self.seed, self.begins, max(step, self.begins))

    def narrow(self, losses: Mapping[str, float], step: int) -> None:
        """Leave the better half, by their labels' losses, from a step on."""
        left = halved(len(self.members))
        self.members = sorted(self.members, key=lambda one: losses[one.label])[:left]
        self.begins = step
