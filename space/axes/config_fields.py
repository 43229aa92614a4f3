"""How model configs name their sizes, and how to change them.

Most classes share a few dozen field names. A dot in a name leads into a nested config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from space.axes.architecture import Axis

#: The field names for each size; the first that a config has counts.
NAMES: dict[Axis, tuple[str, ...]] = {
    Axis.HIDDEN: ("hidden_size", "n_embd", "d_model", "emb_dim"),
    Axis.HEADS: ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    Axis.KV_HEADS: ("attn_config.kv_n_heads", "num_key_value_heads", "num_kv_heads", "num_query_groups"),
    Axis.LAYERS: ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    Axis.EXPERTS: (
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
        "ffn_config.moe_num_experts",
    ),
    Axis.HEAD_DIM: ("head_dim", "kv_channels", "attention_head_dim", "dim_head", "d_head"),
}
#: Fields for the width of an MLP. Tensor shapes tell which MLP: dense, routed experts or shared expert.
WIDTHS = (
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "d_ff",
    "dff",
    "dim_ff",
    "d_inner",
    "ffn_hidden_size",
    "ffn_config.ffn_hidden_size",
    "intermediate_size_mlp",
    "dense_intermediate_size",
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "moe_shared_expert_intermediate_size",
)
TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_top_k",
    "moe_topk",
    "ffn_config.moe_top_k",
    "top_k_experts",
)
EXPERT_GROUPS = ("n_group", "num_expert_group")


def own_fields_of_layers(config: object) -> frozenset[str]:
    """Return the fields that some layers have values of their own for, in ``per_layer_config``.

    transformers does not let them be read of the config itself, where the value of the other layers stands.
    """
    return frozenset(getattr(config, "per_layer_attributes", None) or ())


def read_field(config: PretrainedConfig, name: str) -> Any:
    """Return the value of a field, or None if the config has no field of that name."""
    value: Any = config
    for part in name.split("."):
        if part in own_fields_of_layers(value):
            value = vars(value).get(part)
        else:
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def first_field_of(config: PretrainedConfig, names: tuple[str, ...]) -> str | None:
    """Return the first name, aliases resolved, under which the config itself holds an integer, or None."""
    own = config.to_dict()
    for name in names:
        name = config.attribute_map.get(name, name)
        if name.partition(".")[0] in own and type(read_field(config, name)) is int:
            return name
    return None


def layers_of(config: PretrainedConfig) -> int:
    """Return the number of layers; 0 if no field holds it, as in configs that only list a kind per layer."""
    field = first_field_of(config, NAMES[Axis.LAYERS])
    layers = read_field(config, field or "num_hidden_layers")
    return layers if type(layers) is int else 0


def with_sizes(config: PretrainedConfig, changes: Mapping[str, Any]) -> PretrainedConfig:
    """Return a copy of a config with some fields changed, validated by the config class.

    Args:
        config: the original, which is not modified.
        changes: values by field name; a dot leads into a nested config.

    Raises:
        StrictDataclassError: the class does not allow these sizes together; some classes raise
            ValueError or a similar error instead.
    """
    fields = config.to_dict()
    for derived in ("architectures", "transformers_version", "model_type"):
        fields.pop(derived, None)
    for name, value in changes.items():
        *path, last = name.split(".")
        inner = fields
        for part in path:
            inner = inner[part]
        inner[last] = value
    sized: PretrainedConfig = type(config)(**fields)
    return sized
