"""Tiny teachers on which the contract is tried: special flags by hand, and a sample of types at large.

They are small in every way but in the ways to go wrong: two heads a group, sizes that divide one
another badly, a large epsilon in the norms, windows shorter than the text, biases where the class has
them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from transformers import (
    CONFIG_MAPPING,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from space.verification.contract import logits_of as logits_at
from space.verification.contract import random_teacher
from space.verification.reload import captured_warnings
from space.verification.verification import Verified, verify

__all__ = ["CASES", "SAMPLE", "TINY", "each", "logits_of", "random_teacher", "tokens", "verified"]

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
#: Types as their classes are by default: fused and interleaved tensors, ALiBi and learned positions, scales
#: of embeddings, couplings, mixtures, latent attention, state spaces, linear attention, convolutions.
SAMPLE = (
    "gemma2",
    "cohere2",
    "gpt2",
    "bloom",
    "falcon",
    "phi",
    "phi3",
    "opt",
    "gpt_neox",
    "granite",
    "mixtral",
    "qwen2_moe",
    "gpt_oss",
    "granitemoe",
    "llama4_text",
    "deepseek_v3",
    "minicpm3",
    "nemotron_h",
    "falcon_h1",
    "lfm2",
)
_FLAGS = {
    "llama-tied-biases",
    "mistral-tied-bfloat16-config",
    "qwen2-mixed-layers",
    "qwen3-mixed-layers-biases",
}
#: Every teacher that is tried, by name.
CASES: dict[str, PretrainedConfig] = {
    case: config
    for family, configs in TINY.items()
    for name, config in configs.items()
    if (case := f"{family}-{name}") in _FLAGS
} | {model_type: CONFIG_MAPPING[model_type]() for model_type in SAMPLE}


#: Tried by ``make test-all`` alone: what they have, one of the others has too, but for a config in bfloat16,
#: short convolutions, latent attention, and state-space layers; the support of each is in the table that a
#: sample is taken of.
REPEATED = {
    *("qwen2-mixed-layers", "qwen3-mixed-layers-biases", "mistral-tied-bfloat16-config"),
    *("cohere2", "phi", "granite", "mixtral", "granitemoe", "llama4_text", "opt", "falcon", "nemotron_h"),
    *("falcon_h1", "qwen2_moe", "bloom", "minicpm3", "lfm2", "phi3", "stablelm", "nemotron", "cohere"),
    *("olmo2", "deepseek_v3"),
}


def each(*cases: str, also_slow: tuple[str, ...] = ()) -> list[ParameterSet]:
    """The cases as parameters of a test, ``REPEATED`` ones and those named marked as slow."""
    slow = {*REPEATED, *also_slow}
    return [pytest.param(case, marks=[pytest.mark.slow] * (case in slow)) for case in cases]


@cache
def verified(case: str) -> Verified:
    """What verifying finds for a teacher; the model and its map are as tiny as it makes them."""
    with captured_warnings():
        return verify(CASES[case])


@cache
def tokens() -> torch.Tensor:
    """(2, 12) token numbers, longer than any window of the tiny teachers."""
    return torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(1))


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    """(2, 12, V) for ``tokens``."""
    return logits_at(model, tokens())
