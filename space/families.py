"""What shapes cannot tell of a model type: which types are vouched for, and their config's words.

A type stands here once the contract of extraction has been seen to hold for every axis
(``tests/contracts``). Any other type is refused by name, never cut by a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches

from transformers import PretrainedConfig

from space.architecture import Axis
from space.input_error import InputError


@dataclass(frozen=True)
class Family:
    """How the config of one model type names its axes."""

    model_type: str
    fields: dict[Axis, str] = field(
        default_factory=lambda: {
            Axis.HIDDEN: "hidden_size",
            Axis.MLP: "intermediate_size",
            Axis.HEADS: "num_attention_heads",
            Axis.KV_HEADS: "num_key_value_heads",
            Axis.LAYERS: "num_hidden_layers",
        }
    )
    head_dim: str = "head_dim"
    """The field that fixes the size of a head, so that hidden and heads move apart."""
    per_layer: tuple[str, ...] = ("layer_types",)
    """Fields that hold one entry a layer, where the config has them; they follow the kept layers."""


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
    )
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a teacher's config.

    Raises:
        InputError: the type is not vouched for.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        near = get_close_matches(config.model_type, FAMILIES, n=1)
        raise InputError(
            f"The teacher has to be one of these types: {', '.join(sorted(FAMILIES))}",
            f"this one is of type {config.model_type!r}" + (f", close to {near[0]!r}" if near else ""),
            "Choose another teacher with --model; no other type has passed the contract of extraction",
        )
    return family
