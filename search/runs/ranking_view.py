"""What the report shows of the importance: plain numbers, so that drawing needs no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from space.axes.architecture import Axis
from space.cutting.profile import Profile

if TYPE_CHECKING:
    from space.cutting.ranking import Ranking


@dataclass(frozen=True)
class RankingView:
    """Scores of every axis.

    Attributes:
        profiles: by axis, named as in architectures: ``mlp``, ``heads`` or ``hidden``.
        layers: the scores of the layers, in their order; none if they have none.
        method: how the scores were made, in words.
        turned: hidden are directions of a turned basis, not coordinates.
    """

    profiles: Mapping[str, Profile]
    layers: Sequence[float] = ()
    method: str = ""
    turned: bool = False

    @classmethod
    def of(cls, ranking: Ranking) -> RankingView:
        """What the report shows of a teacher's ranking."""
        layers = ranking.scores[Axis.LAYERS].tolist()
        return cls(ranking.shown(), layers, ranking.method, turned=ranking.basis is not None)
