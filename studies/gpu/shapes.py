"""What is measured: two published 8B shapes that are cut to 4B; and tiny ones, which try the code alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config


@dataclass(frozen=True)
class Shape:
    """A teacher of which there is a config alone."""

    name: str
    config: PretrainedConfig


@dataclass(frozen=True)
class Work:
    """How much is measured."""

    shapes: tuple[Shape, ...]
    """Teachers; speed is measured on the first."""
    budget: str
    """Of their students."""
    step_blocks: int
    """Blocks of a step whose time is measured, at least; the plan's batch at most."""
    ranking_blocks: int
    """Blocks of the calibration set; their length is the plan's."""
    layers: int
    """Layers whose perplexity and moments are measured."""
    matrix: int
    """Rows and columns of the matrices whose product sets the pace."""
    search: tuple[str, ...]
    """Flags of the search that is made on both devices."""


#: https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json
LLAMA_3_1_8B = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    tie_word_embeddings=False,
    dtype=torch.bfloat16,
)
#: https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json
QWEN3_8B = Qwen3Config(
    architectures=["Qwen3ForCausalLM"],
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    tie_word_embeddings=False,
    dtype=torch.bfloat16,
)
#: A search whose candidates do not depend on the device: neither on latencies, nor on losses that are near.
SEARCH = (
    *("--budget", "1M", "--basis", "coordinate", "--objectives", "loss", "--sampler", "random"),
    *("--trials", "6", "--rung-tokens", "8192", "--search-tokens", "40960"),
    *("--retrain-tokens", "16384", "--promote", "1", "--retrain-baselines", "False"),
    *("--dtype", "float32", "--seed", "0"),
)
FULL = Work(
    shapes=(Shape("Llama-3.1-8B", LLAMA_3_1_8B), Shape("Qwen3-8B", QWEN3_8B)),
    budget="4B",
    step_blocks=16,
    ranking_blocks=64,
    layers=4,
    matrix=8192,
    search=SEARCH,
)


def _tiny(name: str) -> Shape:
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    return Shape(name, config)


TOY = Work(
    shapes=(_tiny("tiny"),),
    budget="60%",
    step_blocks=2,
    ranking_blocks=2,
    layers=2,
    matrix=64,
    search=SEARCH,
)
