"""Whether a teacher fits into memory, told before its weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

#: Of the free memory, for the weights; the rest is for what is computed with them.
_FOR_WEIGHTS = 0.9
_MEMORY = Path("/proc/meminfo")


def weight_bytes(files: Sequence[Path], stored: torch.dtype, dtype: torch.dtype) -> int:
    """What a model's weights take in memory.

    Args:
        files: its safetensors files.
        stored: the type of the weights in them.
        dtype: their type in memory.
    """
    return sum(file.stat().st_size for file in files) * dtype.itemsize // stored.itemsize


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or not _MEMORY.is_file():
        return None
    lines = _MEMORY.read_text(encoding="ascii").splitlines()
    found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return int(found["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in found else None


def fits(files: Sequence[Path], stored: torch.dtype, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model can be loaded as a whole: to the host, and from there to its device."""
    needed = weight_bytes(files, stored, dtype)
    free = [free_bytes(place) for place in (torch.device("cpu"), device)]
    return all(room is None or needed <= _FOR_WEIGHTS * room for room in free)
