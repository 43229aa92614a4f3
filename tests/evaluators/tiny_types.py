"""Tiny models of many classes; what sets a head or an attention apart is turned up until it shows."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from tests.evaluators.tiny_models import tiny_model

_MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 0.3, "attn_logit_softcapping": 0.3, "sliding_window": 5},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "phi": {"partial_rotary_factor": 0.5},
    "gptj": {"rotary_dim": 4},
    "gpt2": {"n_inner": 24},
    "bloom": {},
    "opt": {"word_embed_proj_dim": 12, "ffn_dim": 24},
    "mpt": {},
    "minicpm3": {"dim_model_base": 4, "num_key_value_heads": 4, "head_dim": None} | _MLA,
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 28},
    "falcon": {"alibi": True},
    "gpt_neox": {},
    "stablelm": {},
    "biogpt": {},
    "nemotron_h": {
        "mamba_num_heads": 2,
        "mamba_head_dim": 16,
        "ssm_state_size": 4,
        "n_groups": 1,
        "chunk_size": 8,
    },
}


def model_of(model_type: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny model of a type in ``TYPES``."""
    return tiny_model(model_type, seed=seed, **TYPES[model_type] | changes)
