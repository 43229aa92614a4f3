"""Where things lie that several runs use."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the cache of texts, latencies and GGUF models: ``SLIMSEARCH_CACHE``, else the user's cache."""
    if named := os.environ.get("SLIMSEARCH_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimsearch"
