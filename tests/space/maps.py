"""Maps of teachers, each made once."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import AutoConfig, MixtralConfig, NemotronConfig, PretrainedConfig, Qwen2MoeConfig

from space.axes.axis_map import AxisMap
from space.discovery.tiny import tiny_config
from space.verification.verification import verified_axis_map
from tests.space.models import LLAMA_8B, QWEN3_8B, SMALL

NEMOTRON_15B = NemotronConfig(
    vocab_size=256_000,
    hidden_size=6144,
    intermediate_size=24_576,
    num_hidden_layers=32,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=False,
)
CONFIGS: dict[str, PretrainedConfig] = {
    "small": SMALL,
    "llama": LLAMA_8B,
    "qwen3": QWEN3_8B,
    "nemotron": NEMOTRON_15B,
    "mixtral": MixtralConfig(),
    "qwen2_moe": Qwen2MoeConfig(),
}
#: Heads of their own sizes in some layers, whose keys are the values, too.
_CHANGES: dict[str, dict[str, Any]] = {
    "gemma4_text": {
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 2,
    }
}


@cache
def map_of(name: str) -> AxisMap:
    """The map of a teacher of real size."""
    return verified_axis_map(CONFIGS[name])


@cache
def tiny_config_of(model_type: str) -> PretrainedConfig:
    """A tiny config of any type."""
    config: PretrainedConfig = tiny_config(AutoConfig.for_model(model_type, **_CHANGES.get(model_type, {})))
    return config


@cache
def tiny_map(model_type: str) -> AxisMap:
    """The map of a tiny teacher of any type."""
    return verified_axis_map(tiny_config_of(model_type))
