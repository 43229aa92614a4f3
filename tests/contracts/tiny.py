"""Tiny teachers of every family, on which the contract is tried.

They are small in every way but in the ways to go wrong: two heads a group, sizes that divide one
another badly, a large epsilon in the norms, windows shorter than the text, biases where the class has
them.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

_SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 40,
    "intermediate_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.02,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LONG_CONTEXT = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_MIXED = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]

#: Configs by model type, each under a name that says what is special about it.
TINY: dict[str, dict[str, PretrainedConfig]] = {
    "llama": {
        "plain": LlamaConfig(**_SIZES, head_dim=6),
        "tied-biases": LlamaConfig(
            **_SIZES,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            head_dim=4,
            rope_parameters=_LONG_CONTEXT,
        ),
    },
    "mistral": {
        "window": MistralConfig(**_SIZES, sliding_window=5, head_dim=6),
        "tied-bfloat16-config": MistralConfig(
            **_SIZES, sliding_window=None, head_dim=4, tie_word_embeddings=True, dtype="bfloat16"
        ),
    },
    "qwen2": {
        "mixed-layers": Qwen2Config(
            **_SIZES | {"hidden_size": 32}, use_sliding_window=True, sliding_window=4, layer_types=_MIXED
        ),
        "tied": Qwen2Config(**_SIZES | {"hidden_size": 32, "num_hidden_layers": 3}, tie_word_embeddings=True),
    },
    "qwen3": {
        "mixed-layers-biases": Qwen3Config(
            **_SIZES,
            head_dim=6,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=2,
            attention_bias=True,
        ),
        "tied": Qwen3Config(**_SIZES | {"num_hidden_layers": 3}, head_dim=8, tie_word_embeddings=True),
    },
}


@torch.no_grad()
def random_teacher(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model in which no weight is what it is before training: not a norm's, not a bias's."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(noise / math.sqrt(parameter.shape[1]))
        else:
            parameter.copy_(noise / 3 + (0 if name.endswith("bias") else 1))
    model.eval()
    return model


@cache
def tokens() -> torch.Tensor:
    """(2, 12) token numbers, longer than any window of the tiny teachers."""
    return torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    """(2, 12, 48) for ``tokens``."""
    logits: torch.Tensor = model(input_ids=tokens(), use_cache=False).logits
    return logits
