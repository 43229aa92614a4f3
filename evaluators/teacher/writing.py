"""A model as an ordinary Hugging Face directory, and the terms under which it may be passed on."""

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
#: Names, in any case, of files that go wherever the model goes.
LICENCE_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Terms:
    """What the card of a model says in its front matter.

    Attributes:
        licence: as the hub writes it (``apache-2.0``), or several; None: not stated.
        licence_name: what a licence is called that the hub has no key for.
        licence_link: where its text stands, an address or a file beside the model.
        language: one or several; None: not stated.
        base_model: what the model was made from; None: not stated.
        tags: of the model.
    """

    licence: str | list[str] | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    language: str | list[str] | None = None
    base_model: str | list[str] | None = None
    tags: list[str] | None = None


def read_terms(directory: Path) -> Terms:
    """The terms of the model in a directory; a card that cannot be read states nothing."""
    card = directory / _CARD
    if not card.is_file():
        return Terms()
    try:
        front = metadata_load(card) or {}
    except Exception as error:  # whatever is wrong with a file that the user brought
        logger.warning("%s states no licence that can be read: %s", card, short_message(error))
        return Terms()
    return Terms(
        licence=_named(front, "license"),
        licence_name=_text(front, "license_name"),
        licence_link=_text(front, "license_link"),
        language=_named(front, "language"),
        base_model=_named(front, "base_model"),
        tags=_several(front.get("tags")),
    )


def licence_files(directory: Path) -> list[Path]:
    """Files that state the terms in full, or ask to be passed on."""
    kinds = tuple(pattern.removesuffix("*") for pattern in LICENCE_FILES)
    return sorted(
        file for file in directory.iterdir() if file.is_file() and file.name.upper().startswith(kinds)
    )


def _named(front: Mapping[str, Any], key: str) -> str | list[str] | None:
    return _text(front, key) or _several(front.get(key))


def _text(front: Mapping[str, Any], key: str) -> str | None:
    value = front.get(key)
    return value if isinstance(value, str) and value else None


def _several(value: Any) -> list[str] | None:
    return [one for one in value if isinstance(one, str)] or None if isinstance(value, list) else None


def write_directory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    path: Path,
    **saving: Any,
) -> None:
    """Write a directory that transformers loads, in place of one before once it is whole.

    Args:
        model: comes out in ``dtype``.
        tokenizer: goes with it.
        dtype: of the weights on disk.
        path: of the directory.
        saving: further arguments of ``save_pretrained`` of the model, whose defaults are those of the shards.

    Raises:
        OSError: the disk is full; what was at ``path`` is as it was.
    """
    new = path.with_name(path.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    with quiet_libraries():
        nn.Module.to(model, dtype)
        model.save_pretrained(new, **saving)
        tokenizer.save_pretrained(new)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(new, path)
