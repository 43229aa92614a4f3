"""What a teacher says of some tokens: every logit, or the few next tokens that matter, with their weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """Every logit.

    Attributes:
        logits: (n, V) float32.
    """

    logits: Tensor


@dataclass(frozen=True)
class Sparse:
    """A few next tokens.

    Attributes:
        ids: (n, K) int64 token numbers.
        weights: (n, K) float32, of each token's sum 1; 0 where there is none.
        entropy: (n,) float32 nats, of the distribution that the weights stand for.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor


Answer = Dense | Sparse
