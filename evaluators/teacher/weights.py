"""A teacher's weight files: whether they are complete and fit into memory, their dtype and fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig

from evaluators.teacher.host_memory import free_host_bytes
from space.axes.axis_map import wildcard_name
from space.input_error import InputError

#: The share of free memory that weights may take; the rest is for computations.
_SHARE_FOR_WEIGHTS = 0.9
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Of larger tensors, only this many of the first, middle and last bytes are hashed.
_SAMPLE_BYTES = 1 << 16
#: Fields of a config that do not describe the model.
_NOT_THE_MODEL = {"_name_or_path", "transformers_version"}
_AGAIN = "Get the files again (a git clone without git-lfs leaves only pointers to them)"


def weight_bytes(files: Sequence[Path], stored: torch.dtype, dtype: torch.dtype) -> int:
    """Return the bytes that a model's weights take in memory.

    Args:
        files: its safetensors files.
        stored: the dtype of the weights in them.
        dtype: their dtype in memory.
    """
    return sum(file.stat().st_size for file in files) * dtype.itemsize // stored.itemsize


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes, within a container's limit; None where it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes() if device.type == "cpu" else None


def fits_in_memory(
    files: Sequence[Path], stored: torch.dtype, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether a whole model fits into the host's memory, and then into that of its device."""
    needed = weight_bytes(files, stored, dtype)
    free = [free_bytes(place) for place in (torch.device("cpu"), device)]
    return all(room is None or needed <= _SHARE_FOR_WEIGHTS * room for room in free)


def weight_files(directory: Path, id: str) -> list[Path]:
    """Return the safetensors files of a model after checking that all can be read.

    Raises:
        InputError: there are none, one is missing, or one cannot be read.
    """
    names = [SINGLE_FILE] if (directory / SINGLE_FILE).is_file() else _shards(directory, id)
    files = [directory / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(
            "every weight file that the index names has to be there",
            f"{id} lacks {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}",
            _AGAIN,
        )
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(
                "weight files have to be whole safetensors files", f"{file} cannot be read ({error})", _AGAIN
            ) from error
    return files


def _shards(directory: Path, id: str) -> list[str]:
    if not (directory / INDEX).is_file():
        _refuse_no_weights(directory, id)
    return index_of(directory)


def index_of(directory: Path) -> list[str]:
    """Return the names of the shards that the index in a directory lists; they may be any.

    Raises:
        InputError: the index cannot be read.
    """
    index = directory / INDEX
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("it names no files")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError("the index of the weights has to be JSON", f"{index} is not", _AGAIN) from error
    return sorted(names)


def weights_are_here(directory: Path) -> bool:
    """Whether all weight files of a model can be read; a config alone is enough for a plan."""
    with suppress(InputError):
        return bool(weight_files(directory, str(directory)))
    return False


def _refuse_no_weights(directory: Path, id: str) -> None:
    kinds = ("*.bin", "*.safetensors", "*.gguf", "*.pt", "*.pth", "*.h5", "*.msgpack")
    others = sorted(file.name for kind in kinds for file in directory.glob(kind))
    found = f"only {', '.join(others[:3])}" if others else "none (config.json is enough for --plan alone)"
    raise InputError(
        f"a teacher's weights lie beside its config in {SINGLE_FILE}, or in shards with an index",
        f"{id} has {found}",
        "Save the model with `save_pretrained` of transformers, and name that directory",
    )


def stored_dtype(files: Sequence[Path], id: str) -> torch.dtype:
    """Return the dtype of most of the stored weights.

    Raises:
        InputError: it is no floating-point dtype of at least 16 bits.
    """
    elements: Counter[torch.dtype] = Counter()
    for _, tensor in tensors_of(files):
        elements[tensor.dtype] += tensor.numel()
    dtype = elements.most_common(1)[0][0] if elements else None
    if dtype is None or not dtype.is_floating_point or dtype.itemsize < 2:
        raise too_narrow(f"those of {id} are {dtype or 'no tensors at all'}")
    return dtype


def too_narrow(found: str) -> InputError:
    """Return the refusal of weights of less than 16 bits; ``found`` says which."""
    return InputError(
        "a teacher's weights are stored in floating point of at least 16 bits",
        found,
        "Name the model it was made from",
    )


def other_dtypes(
    files: Sequence[Path], places: Mapping[str, str], most: torch.dtype
) -> dict[str, torch.dtype]:
    """Return the dtypes of tensors that are stored in another one than most, widest of all layers.

    Args:
        files: safetensors files.
        places: from stored names to those of the model's tensors, see ``StoredTensors``.
        most: the dtype of most weights.

    Returns:
        By names of the model, with every number replaced by ``*``, as students number layers anew.
    """
    found: dict[str, torch.dtype] = {}
    for name, tensor in tensors_of(files):
        if name in places and tensor.is_floating_point() and tensor.itemsize > 1:
            place = wildcard_name(places[name])
            found[place] = torch.promote_types(found.get(place, tensor.dtype), tensor.dtype)
    return {place: dtype for place, dtype in found.items() if dtype != most}


def fingerprint(config: PretrainedConfig, files: Sequence[Path]) -> str:
    """Return the SHA-256 (hexadecimal) of the config and a sample of every tensor.

    It depends on names, shapes, dtypes and up to 192 KiB of each tensor; not on the directory, nor on how
    the tensors are distributed over files.
    """
    described = {key: value for key, value in config.to_dict().items() if key not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for line in sorted(_tensor_line(name, tensor) for name, tensor in tensors_of(files)):
        digest.update(line.encode())
    return digest.hexdigest()


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, each read when it is asked for.

    Attributes:
        shapes: of every tensor, by name.
        dtypes: the same, as safetensors names them (``BF16``, ``F8_E4M3``).
    """

    def __init__(self, files: Sequence[Path], stack: ExitStack) -> None:
        """Open the files until the stack is closed."""
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        self._files: dict[str, Any] = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        slices = {name: file.get_slice(name) for name, file in self._files.items()}
        self.shapes: dict[str, list[int]] = {name: list(one.get_shape()) for name, one in slices.items()}
        self.dtypes: dict[str, str] = {name: one.get_dtype() for name, one in slices.items()}

    def __getitem__(self, name: str) -> Tensor:
        values: Tensor = self._files[name].get_tensor(name)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def tensors_of(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and content of each tensor; only the bytes used are read from disk."""
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)


def _tensor_line(name: str, tensor: Tensor) -> str:
    data = tensor.flatten().view(torch.uint8)
    starts = [0]
    if len(data) > 3 * _SAMPLE_BYTES:
        starts = [0, (len(data) - _SAMPLE_BYTES) // 2, len(data) - _SAMPLE_BYTES]
        samples = [data[start : start + _SAMPLE_BYTES] for start in starts]
    else:
        samples = [data]
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.numpy().tobytes())
    return f"{name} {tuple(tensor.shape)} {tensor.dtype} {digest.hexdigest()}\n"
