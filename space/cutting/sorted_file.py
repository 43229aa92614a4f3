"""The canonical teacher in a file: written tensor by tensor, and memory-mapped by all that cut from it.

It is an ordinary safetensors file. Sorting keeps shapes and dtypes, so its header is known before the first
tensor is sorted, and one tensor is held at a time. Processes of one host share the pages of a mapped file.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from space.axes.axis_map import AxisMap
from space.cutting.extraction import Weights, sorted_tensors
from space.cutting.ranking import Ranking
from space.cutting.tensor_file import file_header, unfinished, write_at


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
    entries = [(name, weights[name].dtype, weights[name].shape) for name in names]
    ends, header = file_header(entries, {"fingerprint": fingerprint})
    new = unfinished(path)
    try:
        with new.open("wb", buffering=0) as file:
            write_at(file.fileno(), header, 0)
            for tensor, values in sorted_tensors(weights, axis_map, ranking):
                content = values.cpu().contiguous().flatten().view(torch.uint8)
                write_at(file.fileno(), content.numpy().data, len(header) + ends[tensor.name] - len(content))
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
