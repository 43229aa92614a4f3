from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evaluators.memory import kv_bytes_per_token, memory_bytes
from space.architecture import Architecture
from tests.evaluators.tiny_models import random_tokens, tiny_model

LLAMA_8B = Architecture(hidden=4096, mlp=14336, heads=32, kv_heads=8, layers=32)
sizes = st.integers(1, 64)


def test_llama_3_1_8b_in_bfloat16() -> None:
    """128 KiB a token; 16.06 GB of weights, and 1 GiB of cache at 8192 tokens."""
    assert kv_bytes_per_token(LLAMA_8B, head_dim=128, value_bytes=2) == 131_072
    memory = memory_bytes(LLAMA_8B, 8_030_261_248, head_dim=128, value_bytes=2, tokens=8192)
    assert memory == 16_060_522_496 + 2**30


def test_the_cache_is_as_large_as_the_librarys() -> None:
    model, tokens = tiny_model(), random_tokens(3, 11).long()
    cache = model(input_ids=tokens, use_cache=True).past_key_values
    size = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    architecture = Architecture(hidden=16, mlp=24, heads=4, kv_heads=2, layers=3)
    assert memory_bytes(architecture, 0, head_dim=8, value_bytes=4, tokens=tokens.numel()) == size


@given(sizes, sizes, sizes, st.integers(0, 10**6), st.integers(0, 10**6))
def test_memory_is_linear_in_tokens(
    layers: int, kv_heads: int, head_dim: int, tokens: int, more: int
) -> None:
    architecture = Architecture(hidden=8, mlp=8, heads=kv_heads, kv_heads=kv_heads, layers=layers)

    def at(tokens: int) -> int:
        return memory_bytes(architecture, 1000, head_dim, 2, tokens)

    assert at(tokens + more) - at(tokens) == more * kv_bytes_per_token(architecture, head_dim, 2)
    assert at(0) == 2000
