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
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from evaluators.teacher.config_file import CONFIG_FILE
from evaluators.teacher.quantised import QuantisedWeights, quantisation_of, without_quantisation
from evaluators.teacher.shards import copy_beside_weights, write_shards
from evaluators.teacher.weights import TensorFiles, weight_files
from evaluators.teacher.written_once import cache_directory, content_key, written_once
from space.input_error import InputError

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0
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
    described = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    how = quantisation_of(described)
    if how is None:
        return directory
    files = weight_files(directory, id)
    name = re.sub(r"[^\w.-]+", "-", Path(id).name)
    place = cache_directory() / "dequantised" / f"{name}-{content_key([directory / CONFIG_FILE, *files])}"

    def write(new: Path) -> None:
        logger.info("%s is quantised: multiplied out once, to %s, which is the teacher", id, place)
        new.mkdir()
        with ExitStack() as stack:
            stored = TensorFiles(files, stack)
            _check_room(stored, new, id)
            write_shards(_multiplied_out(stored, QuantisedWeights(stored.dtypes, described, id)), new)
        copy_beside_weights(directory, new)
        config = json.dumps(without_quantisation(described), indent=2, ensure_ascii=False)
        (new / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")

    return written_once(place, write)


def _bytes_multiplied_out(stored: TensorFiles) -> int:
    """Return at most how many bytes all weights take in 16 bits."""
    return sum(math.prod(stored.shapes[name]) * _BYTES.get(dtype, 2) for name, dtype in stored.dtypes.items())


def _check_room(stored: TensorFiles, place: Path, id: str) -> None:
    needed, free = _bytes_multiplied_out(stored), shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            "a quantised teacher is multiplied out into the cache",
            f"{id} takes {needed / 1e9:.1f} GB, and the disk of {cache_directory()} has {free / 1e9:.1f}",
            "Make room, name another cache (SLIMSEARCH_CACHE=DIR), or name the model that it was made from",
        )


def _multiplied_out(stored: TensorFiles, weights: QuantisedWeights) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights by name; log how far it is."""
    started = said = time.monotonic()
    for number, name in enumerate(weights.names):
        if (now := time.monotonic()) - said > _SECONDS_BETWEEN_LINES:
            said, left = now, (now - started) * (len(weights.names) / number - 1)
            logger.info(
                "multiplied out %d of %d tensors, about %.0f s left", number, len(weights.names), left
            )
        yield name, weights.read(name, stored)
