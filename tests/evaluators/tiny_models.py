"""Decoders of a few thousand random parameters, of every family at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCABULARY = 37


def tiny_config(model_type: str = "llama", **changes: Any) -> PretrainedConfig:
    """Three layers, four heads in two groups, and a head size that hidden does not give.

    As far as the class has fields for them; of the changes each has to be one.
    """
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "pad_token_id": None,
    }
    default = AutoConfig.for_model(model_type)
    known = default.to_dict().keys() | default.attribute_map.keys()
    fitting = {name: size for name, size in sizes.items() if name in known}
    config = AutoConfig.for_model(model_type, **{**fitting, **changes})
    assert isinstance(config, PretrainedConfig)
    return config


def tiny_model(model_type: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model whose every parameter is random: norms are not 1, biases are not 0, units differ in scale."""
    random = torch.Generator().manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:
                parameter.copy_((1.0 if "norm" in name else 0.0) + 0.3 * values)
            else:
                each = (parameter.shape[0], *[1] * (parameter.ndim - 1))
                scale = torch.rand(each, generator=random) + 0.5
                parameter.copy_(scale * values / parameter.shape[1] ** 0.5)
    model.eval()
    return model


def tiny_student(seed: int = 1, **changes: Any) -> PreTrainedModel:
    """A smaller Llama with a fresh initialisation, ready to learn."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2} | changes
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(**sizes))
    model.eval()
    return model


def random_tokens(blocks: int, block: int, seed: int = 0) -> torch.Tensor:
    """(blocks, block) int32 token numbers."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (blocks, block), generator=random, dtype=torch.int32)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are the same, bit by bit."""
    others = weights(other)
    return all(torch.equal(value, others[name]) for name, value in weights(one).items())
