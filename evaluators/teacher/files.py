"""Where a teacher's files lie: a directory, or the local snapshot of a hub repository."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import snapshot_download

from evaluators.huggingface.downloads import LoggedBytes
from evaluators.huggingface.hub import Wanted, hub_refusals
from evaluators.huggingface.paths import may_be_hub_id, nothing_there
from evaluators.huggingface.quiet import quiet
from evaluators.teacher.terms import LICENCE_FILES
from space.input_error import InputError

logger = logging.getLogger(__name__)
_RULE = "a teacher is a directory or a hub id"
_CONFIG = ["config.json"]
_CODE = ["*.py"]
_WEIGHTS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_TOKENIZER = [
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
]
#: Every folder but that of the chat templates; patterns of the hub's client know no exception.
_FOLDERS = ["[!a]*/*", "a[!d]*/*"]
_TERMS = ["README.md", *LICENCE_FILES]


def find_config(id: str, revision: str | None, trust_remote_code: bool) -> Path:
    """The directory with a teacher's config.json; from the hub no more than that is fetched.

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


def find_all(id: str, config_directory: Path, revision: str | None, trust_remote_code: bool) -> Path:
    """The directory with weights, tokenizer and terms of the model whose config lies in ``config_directory``.

    Raises:
        InputError: the hub does not hand them out.
    """
    if Path(id).expanduser().is_dir():
        return config_directory
    # The name of a snapshot's folder is its commit: the weights of the very same one are meant.
    commit = config_directory.name
    code = _CODE if trust_remote_code else []
    return _find(id, commit, _CONFIG + _WEIGHTS + _TOKENIZER + _TERMS + code)


def _find(id: str, revision: str | None, patterns: list[str]) -> Path:
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
        raise InputError(_RULE, nothing_there(id), "Check the path")
    return _fetch(Wanted("model", id, revision), patterns)


def _fetch(wanted: Wanted, patterns: list[str]) -> Path:
    logger.info("looking up %s on the hub", wanted.id)
    with hub_refusals(wanted), quiet():
        directory = snapshot_download(
            wanted.id,
            revision=wanted.revision,
            allow_patterns=patterns,
            ignore_patterns=_FOLDERS,
            tqdm_class=LoggedBytes,
        )
    return Path(directory)
