"""Find a teacher's files, read its config, and refuse models that cannot be a teacher."""

from __future__ import annotations

import glob
import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from evaluators.huggingface.hub import HubRequest, LoggedBytes, hub_refusals, may_be_hub_id, not_found
from evaluators.huggingface.library_output import quiet_libraries, short_message
from evaluators.teacher.companions import CODE, GENERATION, TOKENIZER_CONFIG, TOKENIZER_FILES
from evaluators.teacher.dequantised import dequantised
from evaluators.teacher.own_code import check_code, registered_config
from evaluators.teacher.promises import keep_promises
from evaluators.teacher.quantised import check_quantised, forget_quantisation
from evaluators.teacher.said import say_once
from evaluators.teacher.stored import empty_model, tensors_apart
from evaluators.teacher.text_half import text_half
from evaluators.teacher.weights import INDEX, SINGLE_FILE, index_of, weight_files, weights_are_here
from evaluators.teacher.writing import LICENCE_FILES
from space.input_error import InputError

logger = logging.getLogger(__name__)
_RULE = "a teacher is a directory or a hub id"
_CAUSAL = "a teacher is a causal language model"
_CONFIG = ["config.json"]
_CODE = [CODE]
_COMPANIONS = [*TOKENIZER_FILES, GENERATION]
#: Small files beside a model of several parts, which go along with ``--keep-towers``.
_PROCESSORS = ["*processor_config.json"]
_TEMPLATES = [TOKENIZER_CONFIG, "chat_template*"]
#: Every folder except ``additional_chat_templates``; the patterns of the hub's client have no negation.
_FOLDERS = ["[!a]*/*", "a[!d]*/*"]
_TERMS = ["README.md", *LICENCE_FILES]


def find_config(id: str, revision: str | None, trust_remote_code: bool) -> Path:
    """Return the directory with a teacher's config.json; from the hub, only this file is downloaded.

    Raises:
        InputError: there is no such model, or it has no config.json.
    """
    directory = _find(id, revision, _CONFIG + (_CODE if trust_remote_code else []))
    rule = "a teacher is a Hugging Face model with a config.json"
    if (directory / "adapter_config.json").is_file():
        raise InputError(rule, f"{id} is an adapter", "Merge it into its base model, save that and name it")
    if not (directory / "config.json").is_file():
        remedy = "Name a directory that `save_pretrained` wrote, or a hub id"
        raise InputError(rule, f"{id} has no config.json", remedy)
    return directory


def has_chat_template(id: str, revision: str | None = None) -> bool:
    """Return whether a teacher comes with a chat template; from the hub, only what tells it is downloaded.

    Raises:
        InputError: there is no such model, or the hub cannot be reached.
    """
    directory = _find(id, revision, [*_CONFIG, *_TEMPLATES])
    if any(file.is_file() for file in directory.glob("chat_template*")):
        return True
    try:
        settings = json.loads((directory / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def find_all(id: str, config_directory: Path, revision: str | None, trust_remote_code: bool) -> Path:
    """Return the directory with weights, tokenizer and licence of the model that ``find_config`` found.

    Where weights are quantised it is another directory, in which they are multiplied out.

    Raises:
        InputError: the hub does not provide them, or they cannot be multiplied out.
    """
    if Path(id).expanduser().is_dir():
        return dequantised(config_directory, id)
    # The name of a snapshot's folder is its commit; the weights have to be of the same commit.
    commit = config_directory.name
    code = _CODE if trust_remote_code else []
    directory = _find(id, commit, [*_CONFIG, INDEX, SINGLE_FILE, *_COMPANIONS, *_PROCESSORS, *_TERMS, *code])
    if (directory / SINGLE_FILE).is_file() or not (directory / INDEX).is_file():
        return dequantised(directory, id)
    # Shards have any names, and may lie in folders: the index tells.
    shards = [glob.escape(name) for name in index_of(directory)]
    return dequantised(_find(id, commit, shards, ignored=[]), id)


def _find(id: str, revision: str | None, patterns: list[str], ignored: list[str] = _FOLDERS) -> Path:
    path = Path(id).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(
                "a revision goes with a hub id",
                f"{id} is a directory, and the revision given is {revision}",
                "Leave --revision out, or name the hub id",
            )
        return path
    if path.exists():
        raise InputError(_RULE, f"{id} is a file", "Name the directory that holds config.json")
    if not may_be_hub_id(id):
        raise InputError(_RULE, not_found(id), "Check the path")
    return _fetch(HubRequest("model", id, revision), patterns, ignored)


def _fetch(wanted: HubRequest, patterns: list[str], ignored: list[str]) -> Path:
    logger.info("looking up %s on the hub", wanted.id)
    with hub_refusals(wanted), quiet_libraries():
        directory = snapshot_download(
            wanted.id,
            revision=wanted.revision,
            allow_patterns=patterns,
            ignore_patterns=ignored,
            tqdm_class=LoggedBytes,
        )
    return Path(directory)


def load_config(id: str, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the config of a teacher; a directory that holds config.json alone is enough.

    Args:
        id: a directory or a hub id.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        InputError: there is no such model, or it cannot be a teacher.
    """
    return read_config(find_config(id, revision, trust_remote_code), id, trust_remote_code)


def read_config(directory: Path, id: str, trust_remote_code: bool) -> PretrainedConfig:
    """Read and check the config in a directory.

    Raises:
        InputError: as in ``load_config``.
    """
    described = _read_json(directory / "config.json", id)
    _refuse_other_kinds(described, id)
    own_code = check_code(described, id, trust_remote_code)
    check_quantised(described, id)
    with quiet_libraries():
        config = _parse_config(directory, id, described if own_code else None)
    forget_quantisation(config)
    if not own_code:
        config = text_half(config, described, id)
    _refuse_not_causal(config, id, own_code)
    keep_promises(config, id, own_code)
    if weights_are_here(directory):
        untie_as_stored(config, directory, id, trust_remote_code)
    return config


def untie_as_stored(config: PretrainedConfig, directory: Path, id: str, trust_remote_code: bool) -> bool:
    """Untie the head in a config, in place, if the weights beside it hold one that differs; say so.

    Returns:
        Whether the config was changed.

    Raises:
        InputError: the class ties two tensors in any case, and the files hold different ones.
    """
    parts = [config, config.get_text_config(decoder=True)]
    tying = [one for one in parts if getattr(one, "tie_word_embeddings", False)]
    files = weight_files(directory, id)
    apart = tensors_apart(empty_model(config, id, trust_remote_code), files)
    if apart is None:
        return False
    for one in tying:
        one.tie_word_embeddings = False
    if tying and tensors_apart(empty_model(config, id, trust_remote_code), files) is None:
        say_once(
            f"{id} ties {apart[0]} to {apart[1]} in its config, but its files hold two different tensors: "
            "they count, so it and its students have both"
        )
        return True
    raise InputError(
        "tensors that a class ties have to be equal in the files",
        f"{apart[0]} and {apart[1]} of {id} are tied by its class, and differ in its files",
        "Save the model with the transformers that trained it, or name another model",
    )


def _parse_config(directory: Path, id: str, by_own_code: dict[str, Any] | None) -> PretrainedConfig:
    try:
        if by_own_code is not None:
            return registered_config(directory, by_own_code)
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # anything can be wrong with a user's file
        raise InputError(
            "config.json has to be one that transformers reads",
            f"of that of {id} it says: {short_message(error)}",
            "Mend it, or install the transformers that wrote it",
        ) from error
    return config


def _read_json(path: Path, id: str) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "config.json has to be JSON", f"that of {id} is not: {short_message(error)}", "Get the file again"
        ) from error
    if not isinstance(described, dict):
        raise InputError("config.json has to be a JSON object", f"that of {id} is not", "Get the file again")
    return described


def _refuse_other_kinds(described: dict[str, Any], id: str) -> None:
    """Refuse what transformers reads without looking, and fails on later."""
    named = described.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(one, str) for one in named)):
        raise InputError(
            "architectures in config.json has to be a list of names of classes",
            f"that of {id} is {named!r}",
            "Mend it, or leave the field out",
        )


def _refuse_not_causal(config: PretrainedConfig, id: str, own_code: bool) -> None:
    remedy = "Name a decoder-only model with a language modelling head, such as a Llama, Mistral or Qwen"
    if config.is_encoder_decoder:
        raise InputError(_CAUSAL, f"{id} ({config.model_type}) has an encoder and a decoder", remedy)
    if not own_code and not _has_causal_head(config):
        named = ", ".join(config.architectures or ())
        found = f"a {named}" if named else f"of the type {config.model_type}"
        raise InputError(_CAUSAL, f"{id} is {found}", remedy)


def _has_causal_head(config: PretrainedConfig) -> bool:
    kind, architectures = config.model_type, config.architectures or []
    # Types such as BERT are encoders unless the config says otherwise.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return False
    if architectures and set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()).isdisjoint(architectures):
        return False
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
