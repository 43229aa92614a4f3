"""What Hypothesis draws: rankings with and without ties, and the students that a class allows."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.ranking import Ranking
from space.verification.contract import random_architecture, random_ranking

seeds = st.integers(0, 2**32 - 1)


def ranking_of(axis_map: AxisMap, seed: int, spread: int = 9) -> Ranking:
    """Whole scores below ``spread``, so that sums are exact; with a spread of one all units are alike."""
    ranking = random_ranking(axis_map, seed)
    generator = torch.Generator().manual_seed(seed)
    scores = {
        axis: torch.randint(0, spread, of.shape, generator=generator).float()
        for axis, of in ranking.scores.items()
    }
    return replace(ranking, scores=scores)


@dataclass(frozen=True)
class Cut:
    """One student: which units are better, how many of each are kept, and which layers."""

    ranking: Ranking
    architecture: Architecture
    layers: list[int]

    def __str__(self) -> str:
        return f"{self.architecture.label} of layers {self.layers}, ranking {self.ranking.fingerprint}"


@st.composite
def cuts(draw: st.DrawFn, axis_map: AxisMap, axes: Collection[Axis], block: bool = False) -> Cut:
    """Students that are smaller along some axes; all others stay as the teacher's, sorted nonetheless.

    Args:
        draw: Hypothesis's.
        axis_map: the teacher's.
        axes: that are cut.
        block: keep layers that stand one after the other.
    """
    rng: random.Random = draw(st.randoms(use_true_random=False))
    drawn = random_architecture(axis_map, axes, rng)
    assume(drawn is not None)
    assert drawn is not None
    architecture, layers = drawn
    if block:
        first = draw(st.integers(0, axis_map.teacher.layers - len(layers)))
        layers = list(range(first, first + len(layers)))
    spread = draw(st.sampled_from((1, 3, 9, 10**6)))
    return Cut(ranking_of(axis_map, draw(seeds), spread), architecture, layers)
