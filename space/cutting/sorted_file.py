"""The canonical teacher in a file: written tensor by tensor, and memory-mapped by all that cut from it.

It is an ordinary safetensors file. Sorting keeps shapes and dtypes, so its header is known before the first
tensor is sorted, and one tensor is held at a time. Processes of one host share the pages of a mapped file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from space.axes.axis_map import AxisMap
from space.cutting.extraction import Weights, sorted_tensors
from space.cutting.ranking import Ranking

#: The names of dtypes in safetensors.
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_NAMES |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
_NAMES |= {torch.uint8: "U8", torch.bool: "BOOL"}
#: The bytes of a header are a multiple of this, so that tensors are aligned in memory.
_ALIGNMENT = 8


def sorted_bytes(axis_map: AxisMap, dtype: torch.dtype) -> int:
    """Return the bytes of a teacher's sorted weights; the file has a header of a few kilobytes besides."""
    return dtype.itemsize * sum(
        math.prod(layout.length for layout in tensor.dimensions) for tensor in axis_map.tensors
    )


def write_sorted(path: Path, weights: Weights, axis_map: AxisMap, ranking: Ranking, fingerprint: str) -> None:
    """Write the tensors of ``sort_by_importance`` atomically, with one of them in memory at a time.

    Args:
        path: the file.
        weights: the teacher's, by name, from ``saved_tensors``.
        axis_map: the teacher's.
        ranking: the teacher's.
        fingerprint: identifies teacher and ranking.

    Raises:
        OSError: the disk is full; an existing file is unchanged.
    """
    # Wide dtypes come first, as safetensors orders them, or a tensor might begin at an odd address.
    names = sorted(weights, key=lambda name: -weights[name].dtype.itemsize)
    ends, header = _header([(name, weights[name]) for name in names], fingerprint)
    new = unfinished(path)
    try:
        with new.open("wb", buffering=0) as file:
            _write(file.fileno(), header, 0)
            for tensor, values in sorted_tensors(weights, axis_map, ranking):
                content = values.cpu().contiguous().flatten().view(torch.uint8)
                _write(file.fileno(), content.numpy().data, len(header) + ends[tensor.name] - len(content))
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def map_sorted(path: Path, fingerprint: str) -> dict[str, Tensor] | None:
    """Return the tensors of a file by name, mapped into memory; None if it is missing, damaged or another's.

    Do not change them. They stay valid while they are referenced, even if the file is removed or replaced.
    """
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError):
        return None


def remove_sorted(path: Path) -> None:
    """Remove a file, and what a killed process left of an unfinished one."""
    for file in (path, unfinished(path)):
        file.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """Return the path that a file has while it is written."""
    return path.with_suffix(".unfinished")


def _header(tensors: Sequence[tuple[str, Tensor]], fingerprint: str) -> tuple[dict[str, int], bytes]:
    """Return the end of each tensor, counted from the end of the header, and the header with its length."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "fingerprint": fingerprint}}
    ends, end = {}, 0
    for name, tensor in tensors:
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        ends[name] = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return ends, len(text).to_bytes(8, "little") + text


def _write(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes: the system may write a part, and reports an error only on the next call."""
    left = memoryview(content)
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done
