"""A quantised model as a teacher: its matrices are multiplied out once, into an ordinary directory.

Such a directory is read tensor by tensor, and written to the cache in the precision that the config names.
From then on it is the teacher, and nothing else has to know in how many bits it was published.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from evaluators.teacher.quantised import QuantisedWeights, quantisation_of, without_quantisation
from evaluators.teacher.weights import INDEX, SINGLE_FILE, weight_files
from evaluators.teacher.written_once import cache_directory, content_key, written_once
from space.input_error import InputError

logger = logging.getLogger(__name__)
_CONFIG = "config.json"
_SHARD_BYTES = 2 * 10**9
_SECONDS_BETWEEN_LINES = 10.0
#: Files that belong to stored weights; the others go along.
_OF_WEIGHTS = re.compile(r"\.(safetensors|bin|pth?|gguf|h5|msgpack|onnx)(\.index\.json)?$")
#: The bytes in 16 bits of what one stored number holds, by the dtype that the file names: 8 bits are one
#: weight or two of 4 bits, 32 bits are eight of them.
_BYTES = {"F32": 4, "F64": 8, "U8": 4, "I8": 4, "I32": 16}


def dequantised(directory: Path, id: str) -> Path:
    """Return a directory with a model's weights in floating point, which the first call writes if need be.

    Args:
        directory: of a model whose config.json was found to be one that can be read, see ``read_config``.
        id: the teacher's name in messages.

    Returns:
        The directory itself, unless its config says that weights are quantised.

    Raises:
        InputError: weights and scales do not fit each other, the package that reads them is not here, or the
            disk has no room.
    """
    described = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    how = quantisation_of(described)
    if how is None:
        return directory
    files = weight_files(directory, id)
    name = re.sub(r"[^\w.-]+", "-", Path(id).name)
    place = cache_directory() / "dequantised" / f"{name}-{content_key([directory / _CONFIG, *files])}"

    def write(new: Path) -> None:
        logger.info("%s is quantised: multiplied out once, to %s, which is the teacher", id, place)
        new.mkdir()
        with ExitStack() as stack:
            stored = _Stored(files, stack)
            _check_room(stored, new, id)
            _write_weights(stored, QuantisedWeights(stored.dtypes, described, id), new)
        _copy_the_rest(directory, new)
        config = json.dumps(without_quantisation(described), indent=2, ensure_ascii=False)
        (new / _CONFIG).write_text(config + "\n", encoding="utf-8")

    return written_once(place, write)


class _Stored(Mapping[str, Tensor]):
    """The tensors of a model's files by name, each read when it is asked for."""

    def __init__(self, files: Sequence[Path], stack: ExitStack) -> None:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        self._files: dict[str, Any] = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        self._slices = {name: file.get_slice(name) for name, file in self._files.items()}
        self.dtypes: dict[str, str] = {name: one.get_dtype() for name, one in self._slices.items()}

    def __getitem__(self, name: str) -> Tensor:
        values: Tensor = self._files[name].get_tensor(name)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def bytes_multiplied_out(self) -> int:
        """Return at most how many bytes all weights take in 16 bits."""
        return sum(
            math.prod(self._slices[name].get_shape()) * _BYTES.get(dtype, 2)
            for name, dtype in self.dtypes.items()
        )


def _check_room(stored: _Stored, place: Path, id: str) -> None:
    needed, free = stored.bytes_multiplied_out(), shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            "a quantised teacher is multiplied out into the cache",
            f"{id} takes {needed / 1e9:.1f} GB, and the disk of {cache_directory()} has {free / 1e9:.1f}",
            "Make room, name another cache (SLIMSEARCH_CACHE=DIR), or name the model that it was made from",
        )


def _write_weights(stored: _Stored, weights: QuantisedWeights, new: Path) -> None:
    """Write all weights in shards, and their index; a single shard needs none."""
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    total = 0

    def flush() -> None:
        file = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, new / file, {"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    started = said = time.monotonic()
    for number, name in enumerate(weights.names):
        shard[name] = weights.read(name, stored)
        total += shard[name].nbytes
        if sum(values.nbytes for values in shard.values()) >= _SHARD_BYTES:
            flush()
        if (now := time.monotonic()) - said > _SECONDS_BETWEEN_LINES:
            said, left = now, (now - started) * (len(weights.names) / (number + 1) - 1)
            done = f"{number + 1} of {len(weights.names)} tensors, {total / 1e9:.1f} GB"
            logger.info("multiplied out %s, about %.0f s left", done, left)
    flush()
    if len(set(places.values())) == 1:
        next(new.glob("model-*")).rename(new / SINGLE_FILE)
    else:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (new / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _copy_the_rest(directory: Path, new: Path) -> None:
    """Copy what lies beside the weights: tokenizer, templates, licence, code."""
    for path in directory.iterdir():
        if path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, new / path.name)
        elif path.is_file() and path.name != _CONFIG and not _OF_WEIGHTS.search(path.name):
            shutil.copyfile(path, new / path.name)
