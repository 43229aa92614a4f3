"""The memory of the host, whole and free, as the system and the control groups of a container tell it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_MEMORY = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


class _Version(NamedTuple):
    """The files of a control group that tell its memory, and what ``memory.stat`` tells can be freed."""

    limit: str
    used: str
    cached: tuple[str, str]


#: Of version 2 of control groups, and of version 1.
_VERSIONS = (
    _Version("memory.max", "memory.current", ("active_file", "inactive_file")),
    _Version("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)


def host_bytes() -> int | None:
    """Return the physical memory of the host, or the limit of the control group if that is less."""
    found = [_system_bytes("MemTotal"), *(limit for limit, _ in _groups())]
    return min((size for size in found if size is not None), default=None)


def free_host_bytes() -> int | None:
    """Return what the host has available, or what is left of the control group's limit if that is less.

    Pages of files count as free, as the system takes them back when it needs memory.
    """
    found = [_system_bytes("MemAvailable"), *(max(0, limit - used) for limit, used in _groups())]
    return min((size for size in found if size is not None), default=None)


def _system_bytes(field: str) -> int | None:
    lines = _MEMORY.read_text(encoding="ascii").splitlines() if _MEMORY.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _groups() -> Iterator[tuple[int, int]]:
    """Yield limit and used bytes of this process's control group and of those around it, where limited.

    In a container the group's own path may not be mounted; its limit then lies at the root.
    """
    folders = {_MOUNT, _MOUNT / "memory"}
    for path in _group_paths():
        for root in (_MOUNT, _MOUNT / "memory"):
            own = root / path.lstrip("/")
            folders |= {own, *(parent for parent in own.parents if parent.is_relative_to(root))}
    for folder in folders:
        for version in _VERSIONS:
            if (limit := _number(folder / version.limit)) is not None:
                yield limit, _used(folder, version)


def _group_paths() -> Sequence[str]:
    """Return the paths of version 2, and of the memory controller of version 1."""
    lines = _GROUPS.read_text().splitlines() if _GROUPS.is_file() else []
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return [path for _, controllers, path in parts if controllers in ("", "memory")]


def _used(folder: Path, version: _Version) -> int:
    """Return the bytes that a group uses, without pages of files; 0 where it does not tell."""
    used = _number(folder / version.used) or 0
    try:
        lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except OSError:
        return used
    return max(0, used - sum(int(fields[1]) for fields in lines if fields and fields[0] in version.cached))


def _number(file: Path) -> int | None:
    """Return the number in a file; None if there is none, which version 1 writes as a very large one."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < 2**60 else None
