"""Which layers a student keeps: the most important ones, of every kind its fair share.

Layers of several kinds (attention, state space, mixture) differ in size. So that a number of layers
fixes the number of parameters, and no kind dies out before the others, each kind keeps a share
given by Adams's rule of apportionment, which rounds up and never takes a layer back as the total grows.

Single layers are dropped by their scores, or several in a row by what they cost together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from space.axes.likeness import layers_of_each_kind
from space.cutting.ranking import descending


def kept_layers(scores: Tensor, layers: int, kinds: Sequence[int], blocks: Tensor | None = None) -> list[int]:
    """The layers of a student, in the teacher's order.

    All but the cheapest block, if blocks are scored and there is one that leaves every kind its share;
    otherwise the most important ones of each kind.

    Args:
        scores: (L,) importance of each layer.
        layers: how many are kept, at least one.
        kinds: (L,) the kind of each layer.
        blocks: (L, L) what it costs to be without n layers in a row, as in ``Ranking``.
    """
    room = layers_of_each_kind(kinds, layers)
    if blocks is not None and (start := _cheapest(blocks, layers, kinds, room)) is not None:
        stop = start + len(kinds) - layers
        return [layer for layer in range(len(kinds)) if not start <= layer < stop]
    kept = []
    for layer in descending(scores).tolist():
        if room[kinds[layer]]:
            room[kinds[layer]] -= 1
            kept.append(layer)
    return sorted(kept)


def _cheapest(blocks: Tensor, layers: int, kinds: Sequence[int], room: Mapping[int, int]) -> int | None:
    """Where the cheapest block starts that leaves every kind its share; of equal ones the last."""
    length = len(kinds) - layers
    if not length:
        return None
    gone = Counter(kinds) - Counter(room)
    starts = [start for start in range(layers + 1) if Counter(kinds[start : start + length]) == gone]
    costs = blocks[length - 1].tolist()
    return min(starts, key=lambda start: (costs[start], -start), default=None)
