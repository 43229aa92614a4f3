"""What neither shapes nor behaviour can tell of a model type: a few lines for the few that need them.

transformers lists encoders, encoder-decoders and models of images and sound among its causal language
models. Their configs tell them apart; the few that no field gives away stand in a list. By
``sees_future_tokens`` behaviour proves it, for the tests and for types that come after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from space.axes.architecture import Axis

#: What no field of the config tells.
_NAMED = {
    "cpmant": "the tokens of its prompt attend both ways",
    "reformer": "it sorts tokens into buckets by a hash, and what a token sees depends on its bucket",
    "trocr": "it is the decoder half of an encoder-decoder and reads an image's encoding",
    "xlm": "it is an encoder: its tokens attend both ways",
    "xlnet": "its tokens attend both ways unless each call says in which order to predict them",
}


def why_not_a_decoder(config: PretrainedConfig) -> str | None:
    """Why a model of this config is not a plain decoder, in words for a user; None where it is one."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, and its decoder reads an encoder's states"
    parts = [name for name in config.sub_configs if getattr(vars(config).get(name), "model_type", "")]
    if parts:
        return _parts(config, parts)
    if getattr(config, "add_cross_attention", False):
        return "its cross-attention reads the states of another model"
    encoder = hasattr(config, "add_cross_attention") and not getattr(config, "is_decoder", True)
    if encoder or getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "it is an encoder: its tokens attend both ways"
    return _NAMED.get(config.model_type)


def _parts(config: PretrainedConfig, parts: list[str]) -> str:
    """The reason for a model of several, and which of them can be named instead."""
    text = getattr(getattr(config, "text_config", None), "model_type", None)
    reason = f"it is made of parts with configs of their own ({', '.join(parts)})"
    if text in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"{reason}; its text model, of type {text!r}, can be named by itself"
    return reason


@torch.no_grad()
def sees_future_tokens(model: PreTrainedModel, tokens_BT: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Whether logits depend on later tokens: swaps the last third of ``tokens_BT`` between sequences."""
    start = tokens_BT.shape[1] * 2 // 3
    changed_BT = tokens_BT.clone()
    changed_BT[:, start:] = changed_BT[:, start:].flip(0)
    before, after = (
        model(input_ids=tokens, use_cache=False).logits[:, :start] for tokens in (tokens_BT, changed_BT)
    )
    return not torch.allclose(before, after, rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class FamilyEntry:
    """What is known of a model type beyond what its class shows."""

    alike: Mapping[Axis, tuple[str, ...]] = field(default_factory=dict)
    """Fields that are set to an axis's size with its own field, if the teacher has them so."""
    rescaled: Mapping[str, tuple[Axis, float]] = field(default_factory=dict)
    """Fields that grow with a power of a size, so that the function stays the same."""
    explicit: Callable[[PretrainedConfig], dict[str, Any]] | None = None
    """Fields that say the same in a way that any layers can be kept and any width be set."""


def _dense_layers_listed(config: PretrainedConfig) -> dict[str, Any]:
    """Every n-th layer is a mixture: the others can be named one by one instead."""
    step, listed = config.decoder_sparse_step, set(config.mlp_only_layers or ())
    dense = [n for n in range(config.num_hidden_layers) if n in listed or (n + 1) % step]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


ENTRIES: dict[str, FamilyEntry] = {
    # The embedding table may be narrower than the stream; if it is not, it stays so.
    "opt": FamilyEntry(alike={Axis.HIDDEN: ("word_embed_proj_dim",)}),
    # The width is two thirds of the field, rounded up, unless told to be the field.
    "lfm2": FamilyEntry(explicit=lambda _: {"block_auto_adjust_ff_dim": False}),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_next"), FamilyEntry(explicit=_dense_layers_listed)),
    # Residual branches are multiplied by scale_depth / √layers.
    "minicpm3": FamilyEntry(rescaled={"scale_depth": (Axis.LAYERS, 0.5)}),
}


def family_entry(model_type: str) -> FamilyEntry:
    """The entry of a type; most have none."""
    return ENTRIES.get(model_type, FamilyEntry())
