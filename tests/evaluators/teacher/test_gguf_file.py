"""A GGUF file becomes a directory with the weights, the sizes and the tokens that it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.teacher import gguf_file
from evaluators.teacher.gguf_file import directory_of_gguf, is_gguf
from space.input_error import InputError
from tests.converted import converted, let_transformers_read
from tests.versions import INSTALLED


@pytest.fixture(scope="module")
def stories(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K as llama.cpp's own script converts it."""
    return converted(real / "stories260K", tmp_path_factory.mktemp("gguf"))


@pytest.fixture
def with_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: True)
    let_transformers_read(monkeypatch)


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
    # transformers 5.17 does not read that the tokenizer begins a text; a run finds out by the teacher's loss.
    begins = Version("5.23") <= INSTALLED
    ids = (of(text, add_special_tokens=begins).input_ids for of in (ours, theirs))
    assert next(ids) == next(ids)


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
