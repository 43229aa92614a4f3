"""Layers taken out one after the other, those that are left scored anew each time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise

import torch
from torch import Tensor, nn

from evaluators.importance.depth.setting import Setting

#: Of the layers that are gone: (L,) scores, higher is more important; theirs are not read.
Scoring = Callable[[Collection[int]], Tensor]


def removal_order(layers: int, scoring: Scoring) -> list[int]:
    """All layers, the first to be taken out first; of equal ones the later goes.

    Args:
        layers: how many there are.
        scoring: is asked layers − 1 times.
    """
    order: list[int] = []
    while len(order) < layers - 1:
        scores = scoring(order).tolist()
        order.append(min((n for n in range(layers) if n not in order), key=lambda n: (scores[n], -n)))
    return [*order, *(n for n in range(layers) if n not in order)]


def ranks(order: list[int]) -> Tensor:
    """(L,) float32: when each layer is taken out, 0 for the first."""
    return torch.tensor([order.index(layer) for layer in range(len(order))]).float()


@torch.no_grad()
def influence_without(setting: Setting, gone: Collection[int]) -> Tensor:
    """(L,) float64: block influence of each layer while those in ``gone`` pass on what they get.

    Args:
        setting: teacher and text.
        gone: layers that are out; what is returned of them is not to be read.
    """
    total, count = torch.zeros(setting.layers, dtype=torch.float64), 0
    for passes in setting.passes(gone):
        for layer, (before, after) in enumerate(pairwise(passes.boundaries.states)):
            ends = before.float(), after.to(before.device).float()
            cosines = nn.functional.cosine_similarity(*ends, dim=-1)
            total[layer] += float(cosines.sum(dtype=torch.float64))
            number = cosines.numel()
        count += number
    return 1 - setting.mean(total, count)
