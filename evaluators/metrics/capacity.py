"""The memory that there is: of the device, and of the host with the limit of its control group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

_MEMORY = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
#: Limits of memory in a control group: of version 2, and of version 1.
_LIMITS = ("memory.max", "memory.limit_in_bytes")


@dataclass(frozen=True)
class Capacity:
    """The bytes that a run may use; None where they cannot be found out."""

    device: int | None
    """Of an accelerator."""
    host: int | None
    shared: bool
    """Whether device and host are one, so that everything counts for the host."""
    told: bool = False
    """Whether the user named the device's memory, of a card that need not be here."""


def capacity_of(device: torch.device, told: int | None = None) -> Capacity:
    """Return what a device and this host have.

    Args:
        device: of the run.
        told: the device's bytes if the user named them.
    """
    host = host_bytes()
    if device.type != "cuda":
        return Capacity(None, host if told is None else min(told, host or told), shared=True)
    if told is not None:  # where the card is not here, its host is not either
        return Capacity(told, host if torch.cuda.is_available() else None, shared=False, told=True)
    return Capacity(int(torch.cuda.mem_get_info(device)[1]), host, shared=False)


def host_bytes() -> int | None:
    """Return the physical memory of the host, or the limit of the control group if that is less."""
    found = [size for size in (_physical_bytes(), *_group_limits()) if size is not None]
    return min(found, default=None)


def _physical_bytes() -> int | None:
    lines = _MEMORY.read_text(encoding="ascii").splitlines() if _MEMORY.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), None)


def _group_limits() -> list[int]:
    """Return the limits of this process's control group and of those around it.

    In a container the group's own path may not be mounted; its limit then lies at the root.
    """
    folders = {_MOUNT, _MOUNT / "memory"}
    for path in _group_paths():
        for root in (_MOUNT, _MOUNT / "memory"):
            own = root / path.lstrip("/")
            folders |= {own, *(parent for parent in own.parents if parent.is_relative_to(root))}
    files = [folder / name for folder in folders for name in _LIMITS]
    return [limit for file in files if (limit := _limit(file)) is not None]


def _group_paths() -> Sequence[str]:
    """Return the paths of version 2, and of the memory controller of version 1."""
    lines = _GROUPS.read_text().splitlines() if _GROUPS.is_file() else []
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return [path for _, controllers, path in parts if controllers in ("", "memory")]


def _limit(file: Path) -> int | None:
    """Return the limit in a file; None if there is none, which version 1 writes as a very large number."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < 2**60 else None
