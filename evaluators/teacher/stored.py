"""Which tensor of the class each stored tensor belongs to, and which stored tensors are left out.

Names on disk differ from those of the class (a prefix left out, experts one by one); transformers' own code
translates them. Left out are further layers for predicting tokens ahead, buffers that older versions stored
and classes compute today, and what the class itself does not read. Any other tensor is refused.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from evaluators.huggingface.library_output import quiet_libraries, short_message
from evaluators.teacher.said import first_names, say_once
from evaluators.teacher.text_half import Shapes, text_names
from space.input_error import InputError

#: A part of a name that only layers for predicting tokens ahead have.
_AHEAD = re.compile(r"(^|\.)([^.]*_)?(mtp|nextn)(_[^.]*)?\.")
#: Buffers that classes compute, by the last parts of their names.
_COMPUTED = re.compile(
    r"(^|\.)(masked_bias|(original_)?inv_freq|(cos|sin)_cached?|position_ids|causal_mask"
    r"|embed_positions(\.weights|\._float_tensor)?|(en|de)coder\.version)$"
)
#: A mask of attention, if its shape is that of one.
_MASK = re.compile(r"(^|\.)(bias|mask)$")
_FIRST_NUMBER = re.compile(r"^(?P<stack>(?:[^.\d][^.]*\.)*)(?P<number>\d+)\.(?P<rest>.+)$")


class LeftOut(Enum):
    """Why a stored tensor is left out, in words for the user."""

    AHEAD = "of layers that predict tokens further ahead, which neither teacher nor students get"
    COMPUTED = "that the class computes"
    UNREAD = "that the class does not read"
    BESIDE = "of other parts than the text half"


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a teacher's files, by their places in the class.

    Attributes:
        places: from the name of a stored tensor to that of the model's tensor which it is, or is part of.
        left_out: the other stored tensors, and why they are not read.
        unknown: stored tensors that have no place, and no reason to be left out.
        renamed: the names that transformers gives to those that are left out.
        key_mapping: where the text half lies in the files of a model of several parts, see ``TextNames``.
    """

    places: Mapping[str, str]
    left_out: Mapping[str, LeftOut]
    unknown: Sequence[str]
    renamed: frozenset[str]
    key_mapping: dict[str, str]

    def tell(self, id: str) -> None:
        """Log, once for each reason, what is left out; buffers that the class computes go without a word."""
        names = defaultdict(list)
        for name, why in self.left_out.items():
            names[why].append(name)
        for why in (LeftOut.AHEAD, LeftOut.UNREAD, LeftOut.BESIDE):
            if found := names[why]:
                say_once(f"of {id}, tensors {why.value}, are left out: {first_names(found)}")


def empty_model(config: PretrainedConfig, id: str, trust_remote_code: bool) -> PreTrainedModel:
    """Build the model of a config without memory for its tensors.

    Raises:
        InputError: its class does not build it.
    """
    try:
        with quiet_libraries(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # anything can be wrong with a user's config
        raise InputError(
            "transformers has to be able to build the teacher",
            f"of {id} it says: {short_message(error)}",
            "Check config.json",
        ) from error
    return model


def shapes_of(files: Sequence[Path]) -> dict[str, list[int]]:
    """Return the shape of every stored tensor, by name; no tensor is read."""
    found = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                found[name] = list(file.get_slice(name).get_shape())
    return found


def find_places(model: PreTrainedModel, shapes: Shapes) -> StoredTensors:
    """Find the place of every stored tensor in a model, which may lie on the meta device."""
    wanted = model.state_dict()
    names = text_names(model, shapes)
    renamed = dict(_renamed(model, wanted, sorted(shapes), names.key_mapping))
    places = {name: place for name, place in renamed.items() if place in wanted}
    others = {name: place for name, place in renamed.items() if place not in wanted}
    width = cast(Tensor, model.get_input_embeddings().weight).shape[-1]
    ahead = _ahead(others, wanted, shapes, width)
    unread = model._keys_to_ignore_on_load_unexpected or ()
    left_out = {}
    for name, place in others.items():
        if name in ahead:
            left_out[name] = LeftOut.AHEAD
        elif names.beside(name):
            left_out[name] = LeftOut.BESIDE
        elif _is_computed(name, shapes[name]):
            left_out[name] = LeftOut.COMPUTED
        elif any(re.search(pattern, one) for pattern in unread for one in (name, place)):
            left_out[name] = LeftOut.UNREAD
    unknown = [name for name in others if name not in left_out]
    foreign = frozenset(others[name] for name in left_out)
    return StoredTensors(places, left_out, unknown, foreign, names.key_mapping)


def weight_mapping(
    model: PreTrainedModel, key_mapping: dict[str, str]
) -> list[WeightConverter | WeightRenaming]:
    """Return how transformers turns stored tensors into those of a model, after ``key_mapping`` of names."""
    return cast(list[WeightConverter | WeightRenaming], get_model_conversion_mapping(model, key_mapping))


def class_names(model: PreTrainedModel, names: Sequence[str]) -> dict[str, str]:
    """Return the names that transformers gives to stored tensors of a model, by the stored ones."""
    return dict(_renamed(model, model.state_dict(), names, {}))


def _renamed(
    model: PreTrainedModel, wanted: dict[str, Tensor], names: Sequence[str], key_mapping: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield each stored name with the name that transformers gives it."""
    mapping = weight_mapping(model, key_mapping)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    for name in names:
        yield name, rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)[0]


def _ahead(others: Mapping[str, str], wanted: Mapping[str, Tensor], shapes: Shapes, width: int) -> set[str]:
    """Return the stored tensors of layers that predict tokens ahead, in a module of their own or at the end.

    Behind the last layer of a stack, such a layer is told from one that the config forgot by the matrix that
    reads state and embedding side by side (width × 2 width), which no other layer has.
    """
    known: defaultdict[str, set[str]] = defaultdict(set)
    last: defaultdict[str, int] = defaultdict(int)
    for name in wanted:
        if found := _FIRST_NUMBER.match(name):
            known[found["stack"]].add(found["rest"])
            last[found["stack"]] = max(last[found["stack"]], int(found["number"]))
    layers: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    joined = set()
    for name, place in others.items():
        found = _FIRST_NUMBER.match(place)
        if found and found["stack"] in known and int(found["number"]) > last[found["stack"]]:
            layer = (found["stack"], int(found["number"]))
            layers[layer].append(name)
            if found["rest"] not in known[found["stack"]] and list(shapes[name]) == [width, 2 * width]:
                joined.add(layer)
    behind = {name for layer in joined for name in layers[layer]}
    return behind | {name for name, place in others.items() if _AHEAD.search(name) or _AHEAD.search(place)}


def _is_computed(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a buffer of an old checkpoint; a mask has one row and column for each position."""
    if _COMPUTED.search(name):
        return True
    square = len(shape) > 2 and shape[-1] == shape[-2] and math.prod(shape[:-2]) == 1
    return square and bool(_MASK.search(name))


def tensors_apart(model: PreTrainedModel, files: Sequence[Path]) -> tuple[str, str] | None:
    """Return the first two tensors that a class ties, while the files hold both with different values.

    Args:
        model: the model, which may lie on the meta device.
        files: its safetensors files.

    Returns:
        The names of the tied tensor and of that which it is tied to; None if there are none such.
    """
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    if not tied:
        return None
    stored = {place: name for name, place in find_places(model, shapes_of(files)).places.items()}
    for one, other in tied.items():
        if one in stored and other in stored and not _equal(files, stored[one], stored[other]):
            return one, other
    return None


def _equal(files: Sequence[Path], *names: str) -> bool:
    found: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in set(names) & set(file.keys())}
    one, other = (found[name] for name in names)
    if 1 in (one.itemsize, other.itemsize):  # one of them is quantised
        return False
    dtype = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.to(dtype), other.to(dtype))
