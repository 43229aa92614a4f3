"""Load the teacher: weights, tokenizer and fingerprint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from evaluators.huggingface.library_output import quiet_libraries, short_message
from evaluators.huggingface.residence import Residence
from evaluators.teacher.companions import has_vocabulary
from evaluators.teacher.config import find_all, find_config, read_config, untie_as_stored
from evaluators.teacher.finite import check_finite
from evaluators.teacher.promises import say_without_code
from evaluators.teacher.said import first_names
from evaluators.teacher.stored import StoredTensors, empty_model, find_places, shapes_of
from evaluators.teacher.vocabulary import check_tokenizer
from evaluators.teacher.weights import (
    fingerprint,
    fits_in_memory,
    other_dtypes,
    stored_dtype,
    weight_files,
)
from space.input_error import InputError

logger = logging.getLogger(__name__)


def find_tokenizer(id: str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a teacher that lies here; None if it has none, or would have to be fetched.

    Raises:
        InputError: it cannot be read.
    """
    directory = Path(id).expanduser()
    if not has_vocabulary(directory):
        return None
    with quiet_libraries():
        return _read_tokenizer(directory, id, trust_remote_code)


def load_tokenizer(
    directory: Path, id: str, config: PretrainedConfig, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is stored with the weights.

    Raises:
        InputError: there is none, it cannot be read, or the model has no row for its tokens.
    """
    if not has_vocabulary(directory):
        raise InputError(
            "a teacher comes with its tokenizer",
            f"{id} has no tokenizer.json nor any other vocabulary",
            "Put the tokenizer's files beside the weights (`tokenizer.save_pretrained(DIR)`)",
        )
    with quiet_libraries():
        tokenizer = _read_tokenizer(directory, id, trust_remote_code)
    if not trust_remote_code and (code := tokenizer.init_kwargs.pop("auto_map", None)):
        say_without_code(id, code)
    check_tokenizer(tokenizer, config.get_text_config().vocab_size, id)
    return tokenizer


def _read_tokenizer(directory: Path, id: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # anything can be wrong with a user's files
        raise InputError(
            "the teacher's tokenizer has to be one that transformers loads",
            f"of that of {id} it says: {short_message(error)}",
            "Get its files again",
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processors_template(directory)
    return tokenizer


def _processors_template(directory: Path) -> str | None:
    """Return the chat template that a model of several parts has in a file of its processor."""
    try:
        described = json.loads((directory / "chat_template.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    template = described.get("chat_template") if isinstance(described, dict) else None
    return template if isinstance(template, str) else None


@dataclass(frozen=True)
class Teacher:
    """The model to be compressed.

    Attributes:
        id: the directory or hub id that the user named.
        revision: the branch, tag or commit that the user named.
        directory: the directory of its files: the user's, or the local snapshot of the hub's.
        model: the model in evaluation mode, without gradients.
        tokenizer: its tokenizer.
        fingerprint: SHA-256 over config and weights, independent of the directory.
        stored_dtype: the dtype of most weights on disk.
        other_dtypes: the dtypes of those that are stored in another one, by names of the model in which every
            number is replaced by ``*``.
        device: where the model computes; None for where it lies.
        stays: whether it lies there for good; else on the host, see ``Residence``.
    """

    id: str
    revision: str | None
    directory: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    stored_dtype: torch.dtype
    device: torch.device | None = None
    stays: bool = True
    other_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """V, the rows of the table of token embeddings."""
        return cast(Tensor, self.model.get_input_embeddings().weight).shape[0]

    @cached_property
    def residence(self) -> Residence:
        """Brings the model to its device, for those who run it."""
        return Residence(self.model, self.device, stays=self.stays)

    def on_device(self) -> AbstractContextManager[None]:
        """Within the context, the model is on its device."""
        return self.residence.on_device()


def load_teacher(
    id: str,
    *,
    revision: str | None,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    stays: bool = True,
) -> Teacher:
    """Load a teacher from a directory or the hub; files are checked before the weights are loaded.

    On the host, transformers maps weights into memory that are stored in ``dtype``: processes share them.

    Args:
        id: a directory or a hub id.
        revision: branch, tag or commit of a hub id.
        device: the device of the model.
        dtype: the dtype of the loaded weights.
        trust_remote_code: whether Python code that comes with the model may run.
        stays: whether the model lies on the device for good, or comes there when it is needed.

    Raises:
        InputError: there is no such model, or it cannot be a teacher.
    """
    config_directory = find_config(id, revision, trust_remote_code)
    config = read_config(config_directory, id, trust_remote_code)
    directory = find_all(id, config_directory, revision, trust_remote_code)
    files = weight_files(directory, id)
    if untie_as_stored(config, directory, id, trust_remote_code):
        raise _untied_too_late(id)
    stored = stored_dtype(files, id)
    if not fits_in_memory(files, stored, dtype, device):
        raise _too_large(id, device)
    tokenizer = load_tokenizer(directory, id, config, trust_remote_code)
    tensors = find_places(empty_model(config, id, trust_remote_code), shapes_of(files))
    check_finite(files, tensors.places, dtype, id)
    logger.info("loading %s", id)
    with quiet_libraries():
        model = _load_model(directory, config, tensors, id, dtype, trust_remote_code)
    tensors.tell(id)
    return Teacher(
        id=id,
        revision=revision,
        directory=directory,
        model=_for_inference(model, id, device if stays else torch.device("cpu")),
        tokenizer=tokenizer,
        fingerprint=fingerprint(config, files),
        stored_dtype=stored,
        device=device,
        stays=stays,
        other_dtypes=other_dtypes(files, tensors.places, stored),
    )


def _load_model(
    directory: Path,
    config: PretrainedConfig,
    tensors: StoredTensors,
    id: str,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the shapes
            key_mapping=tensors.key_mapping,
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(id, torch.device("cpu")) from error
    except Exception as error:  # anything can be wrong with a user's files
        raise InputError(
            "transformers has to be able to load the teacher",
            f"of {id} it says: {short_message(error)}",
            "Check that config.json belongs to the weights",
        ) from error
    model: PreTrainedModel
    model, report = loaded
    _refuse_misfit(report, tensors, id)
    if tensors.key_mapping:  # saved, it is a model of text with the names of its class
        vars(model).pop("_weight_conversions", None)
    return model


def _refuse_misfit(report: dict[str, Any], tensors: StoredTensors, id: str) -> None:
    left_out = tensors.left_out.keys() | tensors.renamed
    misfits = {
        "are missing": sorted(report["missing_keys"]),
        "have no place in the model": sorted(set(report["unexpected_keys"]) - left_out),
        "have another shape": [
            f"{name} ({tuple(stored)} stored, {tuple(built)} by the config)"
            for name, stored, built in sorted(report["mismatched_keys"])
        ],
    }
    found = [f"{first_names(names)} {what}" for what, names in misfits.items() if names]
    if found:
        raise InputError(
            "config and weights of a teacher have to fit each other, or parts of it would be random",
            f"of {id}'s tensors {'; '.join(found)}",
            "Check that config.json belongs to the weights and that all their files are there",
        )


def _for_inference(model: PreTrainedModel, id: str, device: torch.device) -> PreTrainedModel:
    try:
        torch.nn.Module.to(model, device)
    except torch.OutOfMemoryError as error:
        raise _too_large(id, device) from error
    model.train(False)
    return model.requires_grad_(False)


def _untied_too_late(id: str) -> InputError:
    return InputError(
        "what a config says of tied tensors has to be known before the weights are fetched",
        f"that of {id} on the hub ties tensors which differ in its files",
        "Give the same command again: the files are here now, and will be counted as they are",
    )


def _too_large(id: str, device: torch.device) -> InputError:
    return InputError(
        "the teacher has to fit into the memory of its device",
        f"{id} does not fit on {device}",
        "Give --dtype bfloat16, another --device, or a smaller --model",
    )
