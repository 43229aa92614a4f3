"""How much memory a model takes while it serves: weights and KV cache."""

from __future__ import annotations

from space.architecture import Architecture


def kv_bytes_per_token(architecture: Architecture, head_dim: int, value_bytes: int) -> int:
    """Keys and values of one token over all layers."""
    return 2 * architecture.layers * architecture.kv_heads * head_dim * value_bytes


def memory_bytes(
    architecture: Architecture, parameters: int, head_dim: int, value_bytes: int, tokens: int
) -> int:
    """Weights and KV cache together.

    Args:
        architecture: its sizes.
        parameters: how many.
        head_dim: entries of a head.
        value_bytes: of a weight or a cached value (2 for bfloat16).
        tokens: in the cache, over all sequences of the batch.
    """
    return parameters * value_bytes + tokens * kv_bytes_per_token(architecture, head_dim, value_bytes)
