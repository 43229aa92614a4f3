"""Differences between the layers of a model, and what they mean for a student that keeps some of them.

Not every class can express any subset of layers. Weights of another shape would fail to load, but no shape
shows an attention window or a missing rotary embedding. So a student's layer signatures are compared.

``per_layer_fields`` adapts three forms of config fields: a list (or a string) with one entry per layer, an
ascending list of layer numbers, and known counts of leading or trailing layers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from space.input_error import InputError

#: The scalars of one layer, by the module's name (``*`` for the layer's number) and the attribute's name.
LayerSignature = Mapping[tuple[str, str], Any]


def layer_signatures(
    scalars: Mapping[tuple[str, str], Any], stacks: Sequence[str], layers: int
) -> tuple[LayerSignature, ...]:
    """Return the signature of each layer: the scalars of its modules.

    Args:
        scalars: of all modules, by module and attribute, without those that depend on a size.
        stacks: the prefixes of the layers' names.
        layers: the number of layers.
    """
    found: list[dict[tuple[str, str], Any]] = [{} for _ in range(layers)]
    for (module, attribute), value in scalars.items():
        for stack in stacks:
            number, _, rest = module.removeprefix(stack).partition(".")
            if module.startswith(stack) and number.isdigit() and int(number) < layers:
                found[int(number)][f"{stack}*.{rest}", attribute] = value
    return tuple(found)


def without_layer_numbers(layers: Sequence[LayerSignature]) -> tuple[LayerSignature, ...]:
    """Drop the scalars that equal the layer's own number in every layer that has them."""
    others = {
        at
        for n, layer in enumerate(layers)
        for at, value in layer.items()
        if type(value) is bool or value != n
    }
    return tuple({at: value for at, value in layer.items() if at in others} for layer in layers)


def check_layer_signatures(
    teacher: Sequence[LayerSignature], student: Sequence[LayerSignature], kept: Sequence[int]
) -> None:
    """Compare each layer of a student with the teacher's layer that it was made from.

    Args:
        teacher: a signature for each of the teacher's layers.
        student: a signature for each of the student's layers; scalars that only it has are ignored.
        kept: the teacher's layers that the student has.

    Raises:
        InputError: a layer differs; the message names the first difference.
    """
    for place, layer in enumerate(kept):
        for at, value in teacher[layer].items():
            other = student[place].get(at)
            if not _same(value, other):
                module, attribute = at
                raise InputError(
                    "A student's layers have to be what they were in the teacher",
                    f"layer {layer} would be layer {place}, where its class makes {attribute} of "
                    f"{module.rpartition('*.')[2] or 'the layer'} {other!r} in place of {value!r}",
                    "Keep all layers with --keep layers",
                )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


#: The scalar attributes of modules, by the module's name and the attribute's.
ModuleScalars = dict[tuple[str, str], Any]


def module_scalars(model: nn.Module) -> ModuleScalars:
    """Return every number, flag and string attribute of a model's modules."""
    return {
        (name, attribute): value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and attribute != "training" and attribute[0] != "_"
    }


def layers_of_each_kind(kinds: Sequence[int], layers: int) -> dict[int, int]:
    """Return how many layers of each kind a student of ``layers`` layers keeps, by Adams's apportionment.

    Args:
        kinds: for each of the teacher's layers, the number of its kind.
        layers: how many layers the student keeps, at least one.
    """
    whole = Counter(kinds)
    kept = dict.fromkeys(sorted(whole), 0)
    for _ in range(layers):
        open_kinds = [kind for kind in kept if kept[kind] < whole[kind]]
        neediest = max(open_kinds, key=lambda kind: (_need(whole[kind], kept[kind]), whole[kind], -kind))
        kept[neediest] += 1
    return kept


def _need(whole: int, kept: int) -> Fraction | float:
    return Fraction(whole, kept) if kept else float("inf")


#: Config fields that count the first layers, or the last ones, that differ from the rest.
_LEADING = (
    "first_k_dense_replace",
    "num_dense_layers",
    "max_window_layers",
    "prefix_dense_sliding_window_pattern",
    "moe_layer_start_index",
)
_TRAILING = ("num_kv_shared_layers",)
#: Config fields that hold the number of the last layer of a kind.
_LAST = ("moe_layer_end_index",)
_LAYER_FIELD_NAME = re.compile(r"layer|block|pattern|idx|types")


def per_layer_fields(config: PretrainedConfig, layers: int, kept: Sequence[int]) -> dict[str, Any]:
    """Return the config fields that change when only some layers are kept.

    Args:
        config: the teacher's.
        layers: how many layers the teacher has.
        kept: the numbers of the kept layers, ascending.
    """
    changes: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name in _LEADING and isinstance(value, int):
            changes[name] = sum(layer < value for layer in kept)
        elif name in _TRAILING and isinstance(value, int):
            changes[name] = sum(layer >= layers - value for layer in kept)
        elif name in _LAST and isinstance(value, int) and value >= 0:
            changes[name] = sum(layer <= value for layer in kept) - 1
        elif name == "per_layer_config" and isinstance(value, dict):
            own = {int(layer): sizes for layer, sizes in value.items()}
            changes[name] = {place: own[layer] for place, layer in enumerate(kept) if layer in own}
        elif isinstance(value, (list, tuple, str)) and _LAYER_FIELD_NAME.search(name):
            remaining = _remaining_entries(value, layers, kept)
            if remaining is not None:
                changes[name] = remaining
    if changes.get("moe_layer_end_index") == -1:  # none is left, but the class reads -1 as the last layer
        changes["moe_layer_start_index"] = len(kept)
    return changes


def _remaining_entries(value: Any, layers: int, kept: Sequence[int]) -> Any:
    """Return the value for the kept layers; None if it has neither an entry per layer nor layer numbers."""
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
