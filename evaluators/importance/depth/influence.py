"""Block influence of every number of layers in a row, while one forward pass goes by.

1 − cosine between the states at two ends, averaged over tokens (arXiv 2407.14679, section 2.2, for one
layer; arXiv 2403.17887, section 3.2, has the arc cosine for several): the states of all L + 1
boundaries are held while a batch passes, and compared two by two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.importance.depth.passes import Boundaries, listening
from space.axes.axis_map import AxisMap, layer_modules

_SHORTEST = 1e-16
#: Tokens whose unit vectors are held at once.
_TOKENS_AT_ONCE = 512


class Chords:
    """Cosines between all boundaries, summed over tokens in float64; only those with later ones."""

    def __init__(self, model: PreTrainedModel, axis_map: AxisMap) -> None:
        self.layers = layer_modules(model, axis_map)
        self.total = torch.zeros(len(self.layers) + 1, len(self.layers) + 1, dtype=torch.float64)
        self.tokens = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the context every pass is taken in; the states of one at a time are held."""
        boundaries = Boundaries()

        def passed(_: nn.Module, __: Any, ___: Any) -> None:
            self.add(boundaries.states)
            boundaries.clear()

        with listening(self.layers, boundaries):
            handle = self.layers[-1].register_forward_hook(passed)
            try:
                yield
            finally:
                handle.remove()

    def add(self, states: Sequence[Tensor]) -> None:
        """Take in L + 1 times (..., D) states of the same tokens; those of no length have cosine 0."""
        rows = [values.detach().reshape(-1, values.shape[-1]) for values in states]
        for parts in zip(*(values.split(_TOKENS_AT_ONCE) for values in rows), strict=True):
            units = torch.stack([part.to(parts[0].device).float() for part in parts])
            units /= torch.linalg.vector_norm(units, dim=-1, keepdim=True).clamp_min(_SHORTEST)
            # No matrix product: equal layers shall come out equal, whatever their place.
            for number, one in enumerate(units):
                cosines = torch.linalg.vecdot(one, units[number:])
                self.total[number, number:] += cosines.sum(-1, dtype=torch.float64).cpu()
        self.tokens += len(rows[0])


def blocks_of(cosines: Tensor) -> Tensor:
    """(L, L): [n − 1, i] is 1 − cosine of boundaries i and i + n; +inf beyond the last.

    Args:
        cosines: (L + 1, L + 1) of each boundary with later ones, mean over tokens.
    """
    blocks = torch.full_like(cosines[1:, 1:], torch.inf)
    for length in range(1, len(cosines)):
        blocks[length - 1, : len(cosines) - length] = 1 - cosines.diagonal(length)
    return blocks
