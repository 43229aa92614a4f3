"""Make a tiny config of any model type: all flags of a real one, but sizes that can be tested in seconds.

The sizes are chosen to expose mistakes. They differ from each other and rarely divide one another, KV groups
hold three heads, attention windows are shorter than the text, epsilons are large enough to matter, and every
kind of layer occurs at least twice, in an order without a period.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from transformers import PretrainedConfig

_TOKEN = 55
_HEADS, _HEAD_DIM, _ROTATED, _HIDDEN, _INNER, _EXPERT, _SHARED = 6, 8, 4, 36, 40, 20, 28

#: The tiny size of each field, by its common name; ``attribute_map`` gives the name that a class uses.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"), 56),
    **dict.fromkeys(("hidden_size",), _HIDDEN),
    **dict.fromkeys(("num_attention_heads", "swa_num_attention_heads", "linear_num_heads"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("max_position_embeddings",), 64),
    **dict.fromkeys(("original_max_position_embeddings", "log_scaling_n_floor", "floor_scale"), 16),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "local_attention"), 5),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "ffn_dim", "dff"), _INNER),
    **dict.fromkeys(("dense_intermediate_size", "intermediate_size_mlp"), 44),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_blocks"), 4),
    "num_layers_per_stack": 2,
    # mixtures of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 9),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), _EXPERT),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_experts_intermediate_size"), _SHARED),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), _SHARED),
    **dict.fromkeys(("zero_expert_num", "router_hidden_size"), 3),
    # latent attention, indexers, per-layer inputs
    **{"q_lora_rank": 18, "kv_lora_rank": 14, "o_lora_rank": 10, "qk_nope_head_dim": _HEAD_DIM},
    **{"qk_rope_head_dim": _ROTATED, "qk_head_dim": _HEAD_DIM + _ROTATED, "v_head_dim": 12},
    **{"index_head_dim": _HEAD_DIM, "index_n_heads": 16, "index_topk": 5, "swa_head_dim": _HEAD_DIM},
    **{"swa_num_key_value_heads": 3, "hidden_size_per_layer_input": 10, "laurel_rank": 9, "d_rel": 4},
    **{"rel_extent": 7, "gated_norm_rank": 7, "rotary_dim": 4},
    **{"index_block_size": 4, "index_topk_blocks": 2, "hc_lowrank": 9, "adapter_rank": 7, "o_groups": 3},
    # state spaces, linear attention, convolutions
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 10),
    **dict.fromkeys(("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim", "short_conv_kernel_size"), 3),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "keep_window_size"), 4),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 7),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads"), _HEADS),
    **{"linear_head_dim": 10, "linear_key_head_dim": 6, "linear_value_head_dim": 10},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "block_multiple_of": 4},
}
#: Numbers of groups; a value of 1 switches grouping off and is kept.
_GROUPS = {"n_group": 3, "topk_group": 2, "n_groups": 2, "mamba_n_groups": 2, "mamba_ngroups": 2}
#: Widths that are a multiple of hidden by default.
_BESIDE_HIDDEN = ("word_embed_proj_dim", "lru_width", "attention_hidden_size", "embedding_dim")
#: Suffixes of fields with one entry per layer.
_PER_LAYER = ("_types", "_type", "_rope_layers", "_per_layer", "_pattern", "_rope_theta", "intermediate_size")
#: Fields that decide the kinds of layers, set so that both kinds occur among four layers.
_PATTERNS: dict[str, Any] = {
    "first_k_dense_replace": 2,
    "num_dense_layers": 2,
    "mlp_only_layers": [1, 2],
    "interleave_moe_layer_step": 2,
    "moe_layers": [1, 3],
    "attn_layer_indices": [1, 2],
    "full_attn_idxs": [0, 3],
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 2,
    "num_kv_shared_layers": 2,
    "attention_types": [[["global", "local"], 2]],
    "block_types": ["attention", "recurrent", "recurrent", "attention"],
}
#: Fields of a config that do not affect the model in float32.
_NO_FLAG = {"quantization_config", "auto_map", "transformers_version"}
#: Further values that the classes of some types require.
_RULES: dict[str, dict[str, Any]] = {
    "codegen": {"n_head": 4, "n_embd": 48},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "dots3_note_text": {"head_dim": 16},
    "helium": {"hidden_size": _HEADS * _HEAD_DIM},
    "jamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1},
    "jetmoe": {"num_key_value_heads": 3},
    "mamba2": {"head_dim": 2 * _HIDDEN // _HEADS},
    "mimo_v2_flash": {"num_key_value_heads": 3},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_heads": 4, "ffn_round_up_to_multiple_of": 8},
    "zamba": {"attention_head_dim": 2 * _HIDDEN // _HEADS},
    "zaya": {"num_experts_per_tok": 1},
}
#: Values for defaults with which some classes do not run, or lack one of their kinds of layer.
_MIXED = {kind: ["full_attention", kind, kind, "full_attention"] for kind in ("conv", "linear_attention")}
_INDEXER = {"n_heads": 16, "kv_heads": 1, "head_dim": _HEAD_DIM, "budget": 4, "compress_ratio": 2}
_MISSING: dict[str, dict[str, Any]] = {
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 2.0},
    "bamba": {"attn_layer_indices": [1, 2]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 9, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granitemoehybrid": {"layer_types": _MIXED["linear_attention"]},
    "lfm2": {"layer_types": _MIXED["conv"]},
    "lfm2_moe": {"layer_types": _MIXED["conv"]},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {f"indexer_{name}": size for name, size in _INDEXER.items()},
}


def tiny_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return a config of the same class and with the same flags as ``config``, in which every size is tiny.

    Raises:
        ValueError: the class refuses the sizes.
    """
    fields = _arguments(type(config))
    aliases = config.attribute_map
    own = {name: name if name in vars(config) else aliases.get(name, name) for name in fields}
    given = {name: vars(config)[key] for name, key in own.items() if key in vars(config)}
    given |= _extras(config, given)
    given |= _missing(config, given)
    changed = _sizes(given, aliases) | _head_sizes(given, aliases)
    changed |= {name: 0.01 for name, value in given.items() if _is_epsilon(name, value)}
    changed |= {name: _token(name, kind, given) for name, kind in fields.items() if _is_token(name)}
    changed |= {
        name: tiny_config(value) for name, value in given.items() if isinstance(value, PretrainedConfig)
    }
    changed |= _RULES.get(config.model_type, {})
    changed |= _layers(config, given, changed)
    return type(config)(**given | changed)


def _arguments(kind: type[PretrainedConfig]) -> dict[str, str]:
    """Return the arguments of a class of configs, with their types or, without these, their defaults.

    Classes that come with a model mostly have an ``__init__`` of their own in place of fields.
    """
    own = {
        name: str(parameter.default if parameter.annotation is parameter.empty else parameter.annotation)
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return own | {field.name: str(field.type) for field in dataclasses.fields(kind) if field.init}


def _extras(config: PretrainedConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return fields of a real config that its class does not declare (``head_dim`` of Qwen3-MoE)."""
    extras = {
        name: value
        for name, value in vars(config).items()
        if name not in given and not name.startswith("_") and name not in config.attribute_map.values()
    }
    if not extras.keys() - _NO_FLAG:
        return {}
    usual = type(config)()
    return {name: extras[name] for name in extras.keys() - _NO_FLAG if not hasattr(usual, name)}


def _missing(config: PretrainedConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of ``_MISSING`` for this class where the config still has the class's default."""
    table = _MISSING.get(config.model_type or type(config).__name__)
    usual = vars(type(config)()) if table else {}
    return {name: value for name, value in (table or {}).items() if given.get(name) == usual.get(name)}


def _sizes(given: dict[str, Any], aliases: dict[str, str]) -> dict[str, Any]:
    """Return the tiny sizes of the fields that the config has, except those that switch something off."""
    own = {aliases.get(name, name): size for name, size in _SIZES.items()} | _SIZES
    changed: dict[str, Any] = {name: size for name, size in own.items() if _is_size(given.get(name))}
    groups = {aliases.get(name, name): size for name, size in _GROUPS.items()} | _GROUPS
    changed |= {name: size for name, size in groups.items() if (given.get(name) or 0) > 1}
    if given.get("kv_lora_rank"):
        changed |= {"num_key_value_heads": _HEADS} if "num_key_value_heads" in given else {}
    changed |= {name: value for name, value in _PATTERNS.items() if given.get(name) is not None}
    if not given.get("num_kv_shared_layers"):
        changed.pop("num_kv_shared_layers", None)
    return changed


def _is_size(value: Any) -> bool:
    """Whether a value is a size in use: zero and None switch something off."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_epsilon(name: str, value: Any) -> bool:
    return isinstance(value, float) and "eps" in name and ("norm" in name or "rms" in name)


def _is_token(name: str) -> bool:
    return name.endswith(("_token_id", "_token_index"))


def _token(name: str, kind: str, given: dict[str, Any]) -> int | None:
    """Return a special token's number; None where the class works without one."""
    value = given.get(name)
    counts_padding = name == "pad_token_id" and "is_decoder" in given and value is not None
    needed = "None" not in kind or isinstance(value, list) or counts_padding
    return _TOKEN if needed or value == _TOKEN else None


def _head_sizes(given: dict[str, Any], aliases: dict[str, str]) -> dict[str, Any]:
    """Return a head size whose rotated part is even, and hidden if the head size is derived from it."""
    rope = given.get("rope_parameters") or {}
    shares = [part.get("partial_rotary_factor") for part in (rope, *rope.values()) if isinstance(part, dict)]
    share = next((share for share in shares if share), given.get("partial_rotary_factor") or 1)
    size = next(size for size in range(_HEAD_DIM, 400, 2) if int(size * share) % 2 == 0 and size * share >= 2)
    changed: dict[str, Any] = {}
    name, hidden = aliases.get("head_dim", "head_dim"), aliases.get("hidden_size", "hidden_size")
    if name in given:
        size = changed[name] = _ROTATED if "qk_rope_head_dim" in given else size
    elif "v_head_dim" in given:
        size = _ROTATED
    elif hidden in given:
        changed[hidden] = _HEADS * size
    if rope:
        changed["rope_parameters"] = _rope(rope, int(size * share) // 2)
    return changed | _tied_to_hidden(given, given.get(hidden), changed.get(hidden, _HIDDEN))


def _tied_to_hidden(given: dict[str, Any], hidden: int | None, tiny_hidden: int) -> dict[str, Any]:
    """Keep widths that are a multiple of hidden such a multiple; give others a width of their own."""
    inner = {"mamba_d_head": 2 * tiny_hidden // _HEADS, "mamba_head_dim": 2 * tiny_hidden // _HEADS}
    inner["mamba_d_ssm"] = 2 * tiny_hidden
    for name in _BESIDE_HIDDEN:
        times, rest = divmod(given.get(name) or 0, hidden or 1)
        inner[name] = 44 if rest else times * tiny_hidden
    return {name: size for name, size in inner.items() if _is_size(given.get(name))}


def _rope(rope: dict[str, Any], frequencies: int) -> dict[str, Any]:
    """Return the rotary embedding's parameters for fewer frequencies and positions."""
    third = frequencies // 3
    sizes = {"original_max_position_embeddings": 16, "mrope_section": [frequencies - 2 * third, third, third]}
    fewer = {key: value if value is None else sizes.get(key, value) for key, value in rope.items()}
    for key, value in rope.items():
        if isinstance(value, dict):
            fewer[key] = _rope(value, frequencies)
        elif isinstance(value, list) and key.endswith("_factor"):
            fewer[key] = value[:frequencies]
    return fewer


def _layers(config: PretrainedConfig, given: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Reduce the layers and per-layer lists: each kind of layer occurs twice, the second half mirrored."""
    count_name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    count = given.get(count_name) or getattr(config, count_name, None) or 0
    own_sizes = config.to_dict().get("per_layer_config") or {}
    per_layer = {int(layer): sizes for layer, sizes in own_sizes.items()}
    lists: dict[str, list[Any]] = {
        name: list(value)
        for name, value in given.items()
        if isinstance(value, list | tuple) and len(value) == count and name.endswith(_PER_LAYER)
    }
    if per_layer:
        lists["per_layer_config"] = [tuple(per_layer.get(layer, {}).items()) for layer in range(count)]
    lists = {name: entries for name, entries in lists.items() if name not in _PATTERNS}
    kinds = list(dict.fromkeys(reversed(list(zip(*lists.values(), strict=True)))))
    if not kinds:
        return {}
    order = kinds * 2 if len(kinds) == 1 else kinds
    order = (order + order[::-1])[: max(8, len(kinds))][::-1]
    return ({count_name: len(order)} if count_name in given else {}) | {
        field: _entries(field, list(column), changed, given)
        for field, column in zip(lists, zip(*order, strict=True), strict=True)
    }


def _entries(field: str, column: list[Any], changed: dict[str, Any], given: dict[str, Any]) -> Any:
    """Return one entry per layer; sizes among them keep their ratio to the model's size."""

    def ratio(name: str, value: Any) -> Any:
        if name not in {*_SIZES, "head_dim"} or not _is_size(value):
            return value
        whole = given[name] if _is_size(given.get(name)) else value
        size = changed[name] if _is_size(changed.get(name)) else _SIZES.get(name, value)
        return max(1, size * value // whole)

    if field == "per_layer_config":
        return {layer: {n: ratio(n, v) for n, v in sizes} for layer, sizes in enumerate(column) if sizes}
    return [ratio(field.removesuffix("_per_layer"), value) for value in column]
