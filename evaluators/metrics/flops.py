"""The arithmetic of training; that of reading or making a token is in ``space.counting``."""

from __future__ import annotations


def training_flops(matrix_weights: int, tokens: int) -> int:
    """Of forward and backward pass together: six for each weight and token (arXiv 2001.08361, 2.1)."""
    return 6 * matrix_weights * tokens
