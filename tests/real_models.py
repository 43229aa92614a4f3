"""Where models and texts lie that nobody made for this project; without them, their tests are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_folder() -> Path:
    """The folder of small trained models and of texts."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "real"
    folder = Path(os.environ.get("SLIMSEARCH_REAL", beside.resolve()))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; SLIMSEARCH_REAL can say where it is")
    return folder


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct, as the script beside the other real models makes it; for slow tests."""
    folder = Path(os.environ.get("SLIMSEARCH_SMOLLM2", "nowhere"))
    if not folder.is_dir():
        pytest.skip(
            "SLIMSEARCH_SMOLLM2 names no folder; `make_smollm2.py DIR` beside the real models makes one"
        )
    return folder
