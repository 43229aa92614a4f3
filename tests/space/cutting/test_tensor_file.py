"""Files that are written tensor by tensor, and are ordinary safetensors files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from space.cutting.tensor_file import TensorWriter, header_bytes, unfinished

TENSORS = {"a": torch.arange(6.0).view(2, 3), "of none": torch.ones(0, 3), "one": torch.tensor(7.0)}
METADATA = {"of": "a test"}
ROOM = header_bytes([(name, torch.float32, (10**6,) * 3) for name in TENSORS], METADATA)


def test_what_is_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with TensorWriter(path, ROOM) as file:
        for name, values in TENSORS.items():
            file.add(name, values.T if values.ndim == 2 else values)
        file.finish(METADATA)
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert torch.equal(found[name], values.T if values.ndim == 2 else values)
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt", **METADATA}
    assert path.stat().st_size == ROOM + 4 * 7


def test_what_is_not_finished_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"before")
    with TensorWriter(path, ROOM) as file:
        file.add("a", TENSORS["a"])
        assert unfinished(path).exists()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_header_without_room_is_a_defect(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "file.safetensors", 16) as file:
        file.add("a", TENSORS["a"])
        with pytest.raises(AssertionError, match="no room"):
            file.finish(METADATA)
