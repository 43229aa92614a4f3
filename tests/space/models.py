"""Configs of known sizes, for counts that are published and spaces that can be enumerated by hand."""

from __future__ import annotations

from transformers import LlamaConfig, Qwen3Config

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
QWEN3_8B = Qwen3Config(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)
#: 2·50·24 + 3·(2·24·32 + 2·24·16 + 3·24·44 + 2·24) + 24 = 18,984 parameters.
SMALL = LlamaConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=44,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    bos_token_id=None,
    eos_token_id=None,
)
