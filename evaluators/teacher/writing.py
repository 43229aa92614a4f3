"""Write a model as an ordinary Hugging Face directory, and read the licence terms of one."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import metadata_load
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.huggingface.library_output import quiet_libraries, short_message

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
    **saving: Any,
) -> None:
    """Write a directory that transformers loads; an existing one is replaced once the new one is complete.

    Args:
        model: the model; it is converted to ``dtype`` in place.
        tokenizer: its tokenizer.
        dtype: the dtype of the weights on disk.
        path: the directory.
        saving: further arguments of the model's ``save_pretrained``.

    Raises:
        OSError: the disk is full; an existing directory at ``path`` is unchanged.
    """
    new = path.with_name(path.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    with quiet_libraries():
        nn.Module.to(model, dtype)
        model.save_pretrained(new, **saving)
        tokenizer.save_pretrained(new)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(new, path)
