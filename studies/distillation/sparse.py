"""The teacher's next tokens in a few bytes, made of its cached states whenever a batch is read.

So one cache serves every number of draws; what is learnt from is what a cache of the few would hold.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from evaluators.distillation.targets.batch import Batch, Dense, Sparse, Targets

#: An id in two bytes and a weight in two: what one of the k largest takes, up to 65,536 tokens.
BYTES_OF_ONE = 4
#: An id in two bytes and how often it was drawn in one.
BYTES_OF_DRAWN = 3


class Few:
    """The same blocks, of which the teacher says little."""

    def __init__(self, targets: Targets, *, draws: int = 0, largest: int = 0) -> None:
        """Take ``draws`` next tokens from the teacher's distribution, or else the ``largest`` few."""
        self.targets, self.blocks = targets, targets.blocks
        self.tokens, self.learnt = targets.tokens, targets.learnt
        self.draws, self.largest = draws, largest

    def on_device(self) -> AbstractContextManager[None]:
        """See ``Targets``."""
        return self.targets.on_device()

    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``; a block is always drawn alike."""
        batch = self.targets.batch(numbers)
        few = [
            self._few(states, int(number)) for states, number in zip(batch.targets[0], numbers, strict=True)
        ]
        parts = tuple(torch.stack(parts) for parts in zip(*few, strict=True))
        return Batch(batch.tokens, parts, learnt=batch.learnt)

    def predictions(self, *targets: Tensor) -> Sparse:
        """See ``Targets``."""
        ids, weights, entropy = targets
        return Sparse(ids, weights, entropy)

    def _few(self, states: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """(T, K) ids and weights, and (T,) the entropy of what they stand for."""
        answer = self.targets.predictions(states)
        assert isinstance(answer, Dense)
        shares = answer.logits.softmax(-1)
        if self.draws:
            random = torch.Generator().manual_seed(number)
            ids = torch.multinomial(shares, self.draws, replacement=True, generator=random)
            return ids, torch.full(ids.shape, 1 / self.draws), torch.special.entr(shares).sum(-1)
        largest = shares.topk(self.largest)
        weights = largest.values / largest.values.sum(-1, keepdim=True)
        return largest.indices, weights, torch.special.entr(weights).sum(-1)


@torch.no_grad()
def drawn_bytes(targets: Targets, draws: int) -> float:
    """Bytes a token of that many draws, from how many of them are distinct; over a few blocks."""
    batch = Few(targets, draws=draws).batch(torch.arange(min(8, targets.blocks)))
    ids = batch.targets[0].flatten(0, 1).sort(-1).values
    distinct = 1 + (ids[:, 1:] != ids[:, :-1]).sum(-1)
    return float(distinct.float().mean()) * BYTES_OF_DRAWN
