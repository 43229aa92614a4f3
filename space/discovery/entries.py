"""The entries: config fields that follow a size without any shape showing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from space.axes.architecture import Axis


@dataclass(frozen=True)
class Entry:
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


ENTRIES: dict[str, Entry] = {
    # The embedding table may be narrower than the stream; if it is not, it stays so.
    "opt": Entry(alike={Axis.HIDDEN: ("word_embed_proj_dim",)}),
    # The width is two thirds of the field, rounded up, unless told to be the field.
    "lfm2": Entry(explicit=lambda _: {"block_auto_adjust_ff_dim": False}),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_next"), Entry(explicit=_dense_layers_listed)),
    # Residual branches are multiplied by scale_depth / √layers.
    "minicpm3": Entry(rescaled={"scale_depth": (Axis.LAYERS, 0.5)}),
}


def entry_of(model_type: str) -> Entry:
    """The entry of a type; most have none."""
    return ENTRIES.get(model_type, Entry())
