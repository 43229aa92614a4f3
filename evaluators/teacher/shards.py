"""Write tensors one after another into safetensors files of bounded size, and copy what lies beside them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from evaluators.teacher.config_file import CONFIG_FILE
from evaluators.teacher.weights import INDEX, SINGLE_FILE

SHARD_BYTES = 2 * 10**9
#: Files that belong to stored weights.
_OF_WEIGHTS = re.compile(r"\.(safetensors|bin|pth?|gguf|h5|msgpack|onnx)(\.index\.json)?$")


def write_shards(tensors: Iterable[tuple[str, Tensor]], directory: Path) -> None:
    """Write tensors by name; no more than ``SHARD_BYTES`` and one tensor are held at a time.

    A single file needs no index.
    """
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    files, total = 0, 0

    def flush() -> None:
        nonlocal files
        files += 1
        name = f"model-{files:05}.safetensors"
        save_file(shard, directory / name, {"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, values in tensors:
        shard[name] = values
        total += values.nbytes
        if sum(one.nbytes for one in shard.values()) >= SHARD_BYTES:
            flush()
    flush()
    if files == 1:
        (directory / "model-00001.safetensors").rename(directory / SINGLE_FILE)
    else:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def copy_beside_weights(directory: Path, new: Path) -> None:
    """Copy all files of a model but its weights and config: tokenizer, templates, licence, code."""
    for path in directory.iterdir():
        if path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, new / path.name)
        elif path.is_file() and path.name != CONFIG_FILE and not _OF_WEIGHTS.search(path.name):
            shutil.copyfile(path, new / path.name)
