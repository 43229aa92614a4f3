"""A GGUF file as a teacher: read once by transformers, and written as an ordinary directory.

Such a file, the form of llama.cpp, holds weights, sizes and tokens in one. From then on the directory is the
teacher, and nothing else has to know where it came from.
"""

from __future__ import annotations

import logging
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.import_utils import is_gguf_available

from evaluators.huggingface.library_output import quiet_libraries, short_message
from evaluators.teacher.written_once import content_key, written_once
from space.cutting.extraction import model_from_weights
from space.input_error import InputError

logger = logging.getLogger(__name__)
#: By the name that the format has for a type of numbers. Others are of fewer bits, and their scales have 16.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def is_gguf(id: str) -> bool:
    """Whether a teacher is named by a GGUF file."""
    path = Path(id).expanduser()
    return path.suffix == ".gguf" and path.is_file()


def directory_of_gguf(id: str, cache: Path) -> Path:
    """Return the directory of the model in a GGUF file, which the first call makes.

    Weights of 16 or 32 bits stay what they are; quantised ones are written in bfloat16.

    Args:
        id: the file.
        cache: the folder of all such directories.

    Raises:
        InputError: the package that reads such files is not here, or transformers cannot read this one.
    """
    file = Path(id).expanduser()
    directory = cache / f"{file.stem}-{content_key([file])}"
    return written_once(directory, lambda new: _write(file, new, f"{id} is read once: {directory}"))


def _write(file: Path, new: Path, message: str) -> None:
    if not is_gguf_available():
        raise InputError(
            "GGUF files are read by the package gguf",
            f"{file} is one, and the package is not installed",
            "Install it (`pip install gguf`), or name a directory with config.json",
        )
    logger.info("%s will be the teacher, an ordinary directory", message)
    try:
        with quiet_libraries():
            model, tokenizer = _read(file)
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
    except Exception as error:  # anything can be wrong with a user's file
        raise InputError(
            "a GGUF file has to be one that transformers reads",
            f"of {file} it says: {short_message(error)}",
            "Name the directory or hub id of the model that it was made from",
        ) from error


def _read(file: Path) -> tuple[PreTrainedModel, Any]:
    found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=_dtype(file))
    vars(found.config).pop("quantization_config", None)
    model = model_from_weights(found.config, found.state_dict())  # transformers does not save the one it read
    model.generation_config = found.generation_config
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _dtype(file: Path) -> torch.dtype:
    """The dtype of most matrices of a file."""
    tensors = import_module("gguf").GGUFReader(file).tensors
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return _DTYPES.get(max(sizes, key=sizes.__getitem__, default=""), torch.bfloat16)
