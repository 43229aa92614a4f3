from __future__ import annotations

from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from evaluators.metrics.pace import training_flops
from space.axes.axis_map import AxisMap
from space.counting.counting import matrix_polynomial
from space.discovery.discovery import discover
from tests.evaluators.tiny_models import random_tokens, tiny_model
from tests.flop_counts import flops_of

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen3", {}),
    ("mistral", {}),
    ("qwen2", {"tie_word_embeddings": True}),
]


def matrix_weights(axis_map: AxisMap) -> int:
    return matrix_polynomial(axis_map).of(axis_map.teacher)


@pytest.mark.parametrize(("model_type", "changes"), FAMILIES)
def test_training_is_what_torch_counts_without_attention(model_type: str, changes: dict[str, Any]) -> None:
    """Attention, left out by the rule of six, is two products a layer and head, and twice that backwards."""
    model = plain(model_type, changes)
    axis_map = discover(model.config).axis_map
    blocks, block = 3, 10
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=random_tokens(blocks, block).long()).logits
        logits.sum().backward()
    heads_of_all_layers = 3 * 4
    attention = 3 * 2 * 2 * heads_of_all_layers * blocks * block**2 * axis_map.head_dim
    formula = training_flops(matrix_weights(axis_map), blocks * block)
    assert flops_of(counter) == formula + attention


def plain(model_type: str, changes: dict[str, Any]) -> PreTrainedModel:
    """With attention written as products, which torch counts on any device."""
    model = tiny_model(model_type, **changes)
    model.set_attn_implementation("eager")
    return model
