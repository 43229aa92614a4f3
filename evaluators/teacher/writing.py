"""Write a model as an ordinary Hugging Face directory, and read the licence terms of one."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import metadata_load
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from evaluators.distillation.schedule import DivergenceError
from evaluators.huggingface.library_output import quiet_libraries, short_message
from evaluators.teacher.companions import copy_companions, has_generation_settings
from evaluators.teacher.config_file import CONFIG_FILE, restore_form, write_fields
from evaluators.teacher.finite import stays_finite
from space.axes.axis_map import wildcard_name

logger = logging.getLogger(__name__)
_CARD = "README.md"
#: Patterns, in any case, of files that have to be passed on with the model.
LICENCE_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Terms:
    """The metadata in the front matter of a model card; None for what is not stated.

    Attributes:
        licence: one or several of the hub's keys (``apache-2.0``).
        licence_name: the name of a licence for which the hub has no key.
        licence_link: its text, as a web address or a file next to the model.
        language: one or several languages.
        base_model: the model or models from which this one was derived.
        tags: the tags of the model.
    """

    licence: str | list[str] | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    language: str | list[str] | None = None
    base_model: str | list[str] | None = None
    tags: list[str] | None = None


def read_terms(directory: Path) -> Terms:
    """Read the terms of the model in a directory; they are empty if its card cannot be read."""
    card = directory / _CARD
    if not card.is_file():
        return Terms()
    try:
        front = metadata_load(card) or {}
    except Exception as error:  # anything can be wrong with a user's file
        logger.warning("%s states no licence that can be read: %s", card, short_message(error))
        return Terms()
    return Terms(
        licence=_text_or_list(front, "license"),
        licence_name=_text(front, "license_name"),
        licence_link=_text(front, "license_link"),
        language=_text_or_list(front, "language"),
        base_model=_text_or_list(front, "base_model"),
        tags=_list(front.get("tags")),
    )


def licence_files(directory: Path) -> list[Path]:
    """Return the files with the full licence, notices or use policy."""
    kinds = tuple(pattern.removesuffix("*") for pattern in LICENCE_FILES)
    return sorted(
        file for file in directory.iterdir() if file.is_file() and file.name.upper().startswith(kinds)
    )


def _text_or_list(front: Mapping[str, Any], key: str) -> str | list[str] | None:
    return _text(front, key) or _list(front.get(key))


def _text(front: Mapping[str, Any], key: str) -> str | None:
    value = front.get(key)
    return value if isinstance(value, str) and value else None


def _list(value: Any) -> list[str] | None:
    return [one for one in value if isinstance(one, str)] or None if isinstance(value, list) else None


def write_directory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    path: Path,
    other_dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
    source: Path | None = None,
    **saving: Any,
) -> None:
    """Write a directory that transformers loads; an existing one is replaced once the new one is complete.

    Args:
        model: the model; what is saved of it is converted in place, and loses its gradients.
        tokenizer: its tokenizer.
        dtype: the dtype of most weights on disk. If they do not fit into float16, it is bfloat16 instead.
        path: the directory.
        other_dtypes: those of tensors that are stored in another one, see ``Teacher``.
        source: the teacher's directory: its tokenizer's files go along as they are, and config.json keeps the
            form that it has there. Without it, all is in the form of today's transformers.
        saving: further arguments of the model's ``save_pretrained``.

    Raises:
        DivergenceError: a weight is not finite.
        OSError: the disk is full; an existing directory at ``path`` is unchanged.
    """
    new = path.with_name(path.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    most = _convert(model, dtype, other_dtypes)
    with quiet_libraries():
        if source is not None and has_generation_settings(source):
            with _usual_generation(model):
                model.save_pretrained(new, **saving)
        else:
            model.save_pretrained(new, **saving)
        if source is None:
            tokenizer.save_pretrained(new)
        else:
            copy_companions(model, tokenizer, source, new)
    if model.dtype != most:
        _name_dtype(new / CONFIG_FILE, most)
    if source is not None and (source / CONFIG_FILE).is_file():
        restore_form(new / CONFIG_FILE, model.config, source / CONFIG_FILE)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(new, path)


@contextmanager
def _usual_generation(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, a model has the usual settings of generation; the teacher's file replaces them.

    Some of the settings that people have contradict each other, which transformers 5.17 does not save.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _convert(model: nn.Module, dtype: torch.dtype, others: Mapping[str, torch.dtype]) -> torch.dtype:
    """Convert what is saved of a model, in place, each tensor to a dtype that holds it; return most's."""
    saved = {name: one for name, one in model.state_dict(keep_vars=True).items() if one.is_floating_point()}
    for name, values in saved.items():
        if not stays_finite(values, values.dtype):
            raise DivergenceError(f"{name} is not finite")
    apart = {name: kind for name in saved if (kind := others.get(wildcard_name(name))) is not None}
    most = _holding({name: one for name, one in saved.items() if name not in apart}, dtype)
    for name, values in saved.items():
        kind = apart.get(name, most)
        values.grad = None  # of the dtype before
        values.data = values.data.to(kind if stays_finite(values, kind) else torch.float32)
    return most


def _holding(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> torch.dtype:
    """Return the dtype, or bfloat16 if values are beyond it, as those over 65504 are in float16."""
    beyond = next((name for name, values in tensors.items() if not stays_finite(values, dtype)), None)
    if beyond is None or dtype.itemsize > torch.bfloat16.itemsize:
        return dtype
    logger.warning("values of %s are too large for %s: the model is written in bfloat16", beyond, dtype)
    return torch.bfloat16


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Name a dtype in a written config: ``save_pretrained`` names that of the first tensor."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["dtype"] = str(dtype).removeprefix("torch.")
    write_fields(path, fields)
