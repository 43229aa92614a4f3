"""What the report shows of the importance: plain numbers, so that drawing needs no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RankingView:
    """Scores of every axis.

    Attributes:
        scores: by axis, named as in ``mlp layer 0``, ``heads layer 0`` or ``hidden``, the scores from
            the highest to the lowest; under ``layers`` the block influence by layer, in the order of
            the layers.
    """

    scores: Mapping[str, Sequence[float]]
