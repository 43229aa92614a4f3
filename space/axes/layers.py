"""The layers of a model: of what kind each is, and what a config says of each.

Configs tell the kinds of layers in many ways, and not every class can be told to keep just any of
them. Weights of another shape would not load, but a window or a missing rotation shows in no shape.

Three forms are known by their values: a list (or a word) with one entry a layer, a rising list of layers'
numbers, and a few counts of leading or trailing layers.
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

#: A scalar of a layer: the module's name within the layer, the attribute's.
LayerSignature = Mapping[tuple[str, str], Any]


def layer_signatures(
    scalars: Mapping[tuple[str, str], Any], stacks: Sequence[str], layers: int
) -> tuple[LayerSignature, ...]:
    """For each layer, the scalars of its modules.

    Args:
        scalars: of all modules, by module and attribute, without those that depend on a size.
        stacks: prefixes under which the layers lie.
        layers: how many there are.
    """
    found: list[dict[tuple[str, str], Any]] = [{} for _ in range(layers)]
    for (module, attribute), value in scalars.items():
        for stack in stacks:
            number, _, rest = module.removeprefix(stack).partition(".")
            if module.startswith(stack) and number.isdigit() and int(number) < layers:
                found[int(number)][f"{stack}*.{rest}", attribute] = value
    return tuple(found)


def without_layer_numbers(layers: Sequence[LayerSignature]) -> tuple[LayerSignature, ...]:
    """The characters without what is just the layer's own number wherever it occurs."""
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
    """Compare the layers of a student with the teacher's layers that they were.

    Args:
        teacher: a character for each of its layers.
        student: the same of the student; what it alone has is not looked at.
        kept: the teacher's layers that it has.

    Raises:
        InputError: naming the first difference.
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


#: A scalar attribute of a module: the module's name, the attribute's.
ModuleScalars = dict[tuple[str, str], Any]


def module_scalars(model: nn.Module) -> ModuleScalars:
    """Every number, flag and word that the modules of a model hold."""
    return {
        (name, attribute): value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and attribute != "training" and attribute[0] != "_"
    }


def layers_of_each_kind(kinds: Sequence[int], layers: int) -> dict[int, int]:
    """How many layers of each kind a student of ``layers`` layers keeps.

    Args:
        kinds: for each of the teacher's layers, the number of its kind.
        layers: how many are kept, at least one.
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


def per_layer_fields(config: PretrainedConfig, layers: int, kept: Sequence[int]) -> dict[str, Any]:
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
