"""What Hypothesis draws: rankings and the architectures that a class allows."""

from __future__ import annotations

from functools import cache

import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import strategies as st

from space.architecture import Architecture, Axis
from space.axis_map import AxisMap, discover, with_sizes
from space.ranking import Ranking
from tests.contracts.tiny import TINY


@cache
def axis_map_of(family: str, name: str) -> AxisMap:
    """The axis map of a tiny teacher."""
    return discover(TINY[family][name])


def random_ranking(teacher: Architecture, seed: int) -> Ranking:
    """Scores among nine whole numbers: sums are exact, and ties are many."""
    generator = torch.Generator().manual_seed(seed)

    def scores(*shape: int) -> torch.Tensor:
        return torch.randint(0, 9, shape, generator=generator).float()

    return Ranking(
        hidden=scores(teacher.hidden),
        mlp=scores(teacher.layers, teacher.mlp),
        heads=scores(teacher.layers, teacher.heads),
        layers=scores(teacher.layers),
        kv_heads=teacher.kv_heads,
        method="random",
        fingerprint=str(seed),
    )


seeds = st.integers(0, 2**32 - 1)


@cache
def allowed(family: str, name: str) -> list[tuple[int, int, int]]:
    """Every (hidden, heads, KV heads) that the class's own config accepts."""
    axis_map = axis_map_of(family, name)
    teacher, fields = axis_map.teacher, axis_map.family.fields
    found = []
    for hidden in range(1, teacher.hidden + 1):
        for kv_heads in range(1, teacher.kv_heads + 1):
            for heads in range(kv_heads, kv_heads * teacher.heads // teacher.kv_heads + 1, kv_heads):
                sizes = {Axis.HIDDEN: hidden, Axis.HEADS: heads, Axis.KV_HEADS: kv_heads}
                try:
                    with_sizes(axis_map.config, {fields[axis]: size for axis, size in sizes.items()})
                except StrictDataclassError:
                    continue
                found.append((hidden, heads, kv_heads))
    return found


def architectures(family: str, name: str, free: set[Axis]) -> st.SearchStrategy[Architecture]:
    """Architectures that the class allows, of the teacher's size but for the free axes.

    Heads alone leave the KV heads as they are; KV heads alone take their query heads with them.
    """
    teacher = axis_map_of(family, name).teacher
    group = teacher.heads // teacher.kv_heads
    widths = [
        (hidden, heads, kv_heads)
        for hidden, heads, kv_heads in allowed(family, name)
        if Axis.HIDDEN in free or hidden == teacher.hidden
        if Axis.HEADS in free or heads == kv_heads * group
        if Axis.KV_HEADS in free or kv_heads == teacher.kv_heads
    ]
    return st.builds(
        lambda width, mlp, layers: Architecture(width[0], mlp, width[1], width[2], layers),
        st.sampled_from(widths),
        st.integers(1, teacher.mlp) if Axis.MLP in free else st.just(teacher.mlp),
        st.integers(1, teacher.layers) if Axis.LAYERS in free else st.just(teacher.layers),
    )
