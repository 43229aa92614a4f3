"""The fields of a config that speak of single layers, and what becomes of them when layers go.

Three forms are known by their values: a list (or a word) with one entry a layer, a rising list of layers'
numbers, and a few counts of leading or trailing layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from transformers import PretrainedConfig

#: Counts of the first layers that differ from the rest, and of the last.
_LEADING = (
    "first_k_dense_replace",
    "num_dense_layers",
    "max_window_layers",
    "prefix_dense_sliding_window_pattern",
    "moe_layer_start_index",
)
_TRAILING = ("num_kv_shared_layers",)
#: The number of the last layer of a kind.
_LAST = ("moe_layer_end_index",)
_SPEAKS_OF_LAYERS = re.compile(r"layer|block|pattern|idx|types")


def following(config: PretrainedConfig, layers: int, kept: Sequence[int]) -> dict[str, Any]:
    """The changed fields of a config that keeps some of its layers.

    Args:
        config: the teacher's.
        layers: how many it has.
        kept: their numbers, ascending.
    """
    changes: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name in _LEADING and isinstance(value, int):
            changes[name] = sum(layer < value for layer in kept)
        elif name in _TRAILING and isinstance(value, int):
            changes[name] = sum(layer >= layers - value for layer in kept)
        elif name in _LAST and isinstance(value, int) and value >= 0:
            changes[name] = sum(layer <= value for layer in kept) - 1
        elif isinstance(value, (list, tuple, str)) and _SPEAKS_OF_LAYERS.search(name):
            followed = _followed(value, layers, kept)
            if followed is not None:
                changes[name] = followed
    if changes.get("moe_layer_end_index") == -1:  # to the class that is the last layer, but none is left
        changes["moe_layer_start_index"] = len(kept)
    return changes


def _followed(value: Any, layers: int, kept: Sequence[int]) -> Any:
    if _numbers_of_layers(value, layers):
        return [place for place, layer in enumerate(kept) if layer in value]
    if len(value) != layers:
        return None
    entries = [value[layer] for layer in kept]
    return "".join(entries) if isinstance(value, str) else entries


def _numbers_of_layers(value: Any, layers: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(type(entry) is int and 0 <= entry < layers for entry in value)
        and all(a < b for a, b in pairwise(value))
    )
