"""Facts about model types that neither tensor shapes nor behaviour show.

transformers also lists encoders, encoder-decoders and multimodal models among its causal language models.
``why_not_a_decoder`` recognises them by their config; the few types that no field reveals are listed by name.
``sees_future_tokens`` proves it by a forward pass, for the tests and for types added later. ``ENTRIES`` holds
the few config fields that need special treatment when a model is resized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from space.axes.architecture import Axis

#: Types that are no plain decoders although no field of their config shows it.
_NOT_DECODERS = {
    "cpmant": "the tokens of its prompt attend both ways",
    "reformer": "it sorts tokens into buckets by a hash, and what a token sees depends on its bucket",
    "trocr": "it is the decoder half of an encoder-decoder and reads an image's encoding",
    "xlm": "it is an encoder: its tokens attend both ways",
    "xlnet": "its tokens attend both ways unless each call says in which order to predict them",
}


def why_not_a_decoder(config: PretrainedConfig) -> str | None:
    """Return why a model of this config is no plain decoder, as text for the user; None if it is one."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, and its decoder reads an encoder's states"
    parts = [name for name in config.sub_configs if getattr(vars(config).get(name), "model_type", "")]
    if parts:
        return _reason_for_parts(config, parts)
    if getattr(config, "add_cross_attention", False):
        return "its cross-attention reads the states of another model"
    encoder = hasattr(config, "add_cross_attention") and not getattr(config, "is_decoder", True)
    if encoder or getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "it is an encoder: its tokens attend both ways"
    return _NOT_DECODERS.get(config.model_type)


def _reason_for_parts(config: PretrainedConfig, parts: list[str]) -> str:
    """Return the refusal of a model with several sub-configs; name its text model if that can be used."""
    text = getattr(getattr(config, "text_config", None), "model_type", None)
    reason = f"it is made of parts with configs of their own ({', '.join(parts)})"
    if text in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"{reason}; its text model, of type {text!r}, can be named by itself"
    return reason


@torch.no_grad()
def sees_future_tokens(model: PreTrainedModel, tokens_BT: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Whether logits depend on later tokens; tested by swapping the last third between sequences."""
    start = tokens_BT.shape[1] * 2 // 3
    changed_BT = tokens_BT.clone()
    changed_BT[:, start:] = changed_BT[:, start:].flip(0)
    before, after = (
        model(input_ids=tokens, use_cache=False).logits[:, :start] for tokens in (tokens_BT, changed_BT)
    )
    return not torch.allclose(before, after, rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class FamilyEntry:
    """Config fields of a model type that need special treatment when sizes change."""

    alike: Mapping[Axis, tuple[str, ...]] = field(default_factory=dict)
    """Fields that are set together with an axis's own field, if they have the same value in the teacher."""
    rescaled: Mapping[str, tuple[Axis, float]] = field(default_factory=dict)
    """Fields that scale with a power of an axis's size, so that the model computes the same function."""
    explicit: Callable[[PretrainedConfig], dict[str, Any]] | None = None
    """Fields that describe the same model in a form in which layers and widths can be chosen freely."""


def _dense_layers_listed(config: PretrainedConfig) -> dict[str, Any]:
    """Replace "every n-th layer is a mixture of experts" by an explicit list of the dense layers."""
    step, listed = config.decoder_sparse_step, set(config.mlp_only_layers or ())
    dense = [n for n in range(config.num_hidden_layers) if n in listed or (n + 1) % step]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


ENTRIES: dict[str, FamilyEntry] = {
    # The embedding may be narrower than hidden; where both are equal, they stay equal.
    "opt": FamilyEntry(alike={Axis.HIDDEN: ("word_embed_proj_dim",)}),
    # By default the MLP width is two thirds of the field, rounded up; this flag makes it the field itself.
    "lfm2": FamilyEntry(explicit=lambda _: {"block_auto_adjust_ff_dim": False}),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_next"), FamilyEntry(explicit=_dense_layers_listed)),
    # Residual branches are multiplied by scale_depth / √layers.
    "minicpm3": FamilyEntry(rescaled={"scale_depth": (Axis.LAYERS, 0.5)}),
}


def family_entry(model_type: str) -> FamilyEntry:
    """Return the entry of a model type; an empty one for most types."""
    return ENTRIES.get(model_type, FamilyEntry())
