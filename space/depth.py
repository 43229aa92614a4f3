"""Which layers a student keeps: the most important ones, of every kind its fair share.

Layers of several kinds (attention, state space, mixture) differ in size. So that a number of layers
fixes the number of parameters, and no kind dies out before the others, each kind keeps a share
given by Adams's rule of apportionment, which rounds up and never takes a layer back as the total grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

from space.ranking import descending


def layers_of_each_kind(kinds: Sequence[int], layers: int) -> dict[int, int]:
    """How many layers of each kind a student of ``layers`` layers keeps.

    Args:
        kinds: for each of the teacher's layers, the number of its kind.
        layers: how many are kept, at least one.
    """
    whole = Counter(kinds)
    kept = dict.fromkeys(sorted(whole), 0)
    for _ in range(layers):
        open_kinds = [kind for kind in kept if kept[kind] < whole[kind]]
        neediest = max(open_kinds, key=lambda kind: (_need(whole[kind], kept[kind]), whole[kind], -kind))
        kept[neediest] += 1
    return kept


def _need(whole: int, kept: int) -> Fraction | float:
    return Fraction(whole, kept) if kept else float("inf")


def kept_layers(scores: Tensor, layers: int, kinds: Sequence[int]) -> list[int]:
    """The most important layers of each kind, in the teacher's order.

    Args:
        scores: (L,) importance of each layer.
        layers: how many are kept.
        kinds: (L,) the kind of each layer.
    """
    room = layers_of_each_kind(kinds, layers)
    kept = []
    for layer in descending(scores).tolist():
        if room[kinds[layer]]:
            room[kinds[layer]] -= 1
            kept.append(layer)
    return sorted(kept)
