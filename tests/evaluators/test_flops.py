from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, PreTrainedModel

from evaluators.flops import decode_flops, training_flops
from space.axis_map import AxisMap, discover
from space.counting import matrix_polynomial
from tests.evaluators.tiny_models import random_tokens, tiny_model

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {}),
]


def matrix_weights(axis_map: AxisMap) -> int:
    return matrix_polynomial(axis_map).of(axis_map.teacher)


def test_llama_3_1_8b() -> None:
    """Of 8.03 billion parameters all but the embedding table and the norms are multiplied with."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    axis_map = discover(config)
    query_and_output, key_and_value, mlp = 2 * 4096 * 4096, 2 * 4096 * 1024, 3 * 4096 * 14_336
    weights = 32 * (query_and_output + key_and_value + mlp) + 4096 * 128_256
    assert matrix_weights(axis_map) == weights == 7_504_658_432
    assert decode_flops(axis_map.teacher, weights, 128, context=0) == 15_009_316_864 + 524_288
    at_8191 = decode_flops(axis_map.teacher, weights, 128, context=8191)
    assert at_8191 == 15_009_316_864 + 4 * 32 * 32 * 128 * 8192 == 19_304_284_160
    assert training_flops(weights, 10) == 60 * weights


@pytest.mark.parametrize(("model_type", "changes"), FAMILIES)
@pytest.mark.parametrize("context", [1, 12])
def test_decoding_one_token_is_what_torch_counts(
    model_type: str, changes: dict[str, Any], context: int
) -> None:
    """To the last product; norms, activations and positions are no products to either."""
    model = plain(model_type, changes)
    axis_map = discover(model.config)
    tokens = random_tokens(1, context + 1).long()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(input_ids=tokens[:, :-1], use_cache=True).past_key_values
        before = counter.get_total_flops()
        model(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True)
    formula = decode_flops(axis_map.teacher, matrix_weights(axis_map), axis_map.head_dim, context)
    assert counter.get_total_flops() - before == formula


@pytest.mark.parametrize(("model_type", "changes"), FAMILIES)
def test_training_is_what_torch_counts_without_attention(model_type: str, changes: dict[str, Any]) -> None:
    """Attention, left out by the rule of six, is two products a layer and head, and twice that backwards."""
    model = plain(model_type, changes)
    axis_map = discover(model.config)
    blocks, block = 3, 10
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=random_tokens(blocks, block).long()).logits
        logits.sum().backward()
    heads_of_all_layers, head_dim = 3 * 4, 8
    attention = 3 * 2 * 2 * heads_of_all_layers * blocks * block**2 * head_dim
    formula = training_flops(matrix_weights(axis_map), blocks * block)
    assert counter.get_total_flops() == formula + attention


def plain(model_type: str, changes: dict[str, Any]) -> PreTrainedModel:
    """With attention written as products, which torch counts on any device."""
    model = tiny_model(model_type, **changes)
    model.set_attn_implementation("eager")
    return model
