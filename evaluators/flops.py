"""How much arithmetic a token costs."""

from __future__ import annotations

from space.architecture import Architecture


def decode_flops(architecture: Architecture, matrix_weights: int, head_dim: int, context: int) -> int:
    """Floating-point operations to make one token after ``context`` others.

    Two for each weight of a matrix, and for each layer, head and token attended to, itself among
    them, two products of the head's size: of query with key and of weight with value.
    """
    attention = 4 * architecture.layers * architecture.heads * head_dim * (context + 1)
    return 2 * matrix_weights + attention


def training_flops(matrix_weights: int, tokens: int) -> int:
    """Of forward and backward pass together: six for each weight and token (arXiv 2001.08361, 2.1)."""
    return 6 * matrix_weights * tokens
