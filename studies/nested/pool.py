"""The pool of a nested training: who is drawn at a step, and who is left when it is narrowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from space.axes.architecture import Architecture

#: The fewest that are left.
_FEWEST = 6


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
        rounds, place = divmod(max(0, step - self.begins), len(self.members))
        return self.members[self._order(rounds)[place]]

    def narrow(self, losses: Mapping[str, float], step: int) -> None:
        """Leave the better half, by their labels' losses, from a step on."""
        left = max(_FEWEST, -(-len(self.members) // 2))
        self.members = sorted(self.members, key=lambda one: losses[one.label])[:left]
        self.begins = step

    def _order(self, rounds: int) -> list[int]:
        generator = np.random.default_rng((self.seed, self.begins, rounds))
        order: list[int] = generator.permutation(len(self.members)).tolist()
        return order
