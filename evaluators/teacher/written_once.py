"""Directories that are written once into the cache, and are there for every run from then on."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

_HASHED_BYTES = 2**22


def cache_directory() -> Path:
    """Return the cache of texts, latencies and converted models: ``SLIMSEARCH_CACHE``, else the user's."""
    if named := os.environ.get("SLIMSEARCH_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimsearch"


def content_key(files: Iterable[Path]) -> str:
    """Return a name (12 hexadecimal digits) for what is in files, from the size and the ends of each."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{size} ".encode() + stream.read(_HASHED_BYTES))
            stream.seek(max(0, size - _HASHED_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()[:12]


def written_once(directory: Path, write: Callable[[Path], None]) -> Path:
    """Return a directory after writing it, unless it is there already; it is whole if it is there.

    Args:
        directory: its place.
        write: fills the folder it is given, which does not exist yet; that is moved to its place afterwards.
    """
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        new = Path(folder) / "new"
        write(new)
        try:
            new.rename(directory)
        except OSError:  # another process was first
            if not directory.is_dir():
                raise
    return directory
