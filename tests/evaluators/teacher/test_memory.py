"""Whether a teacher fits is told from its files and from what the system says is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from evaluators.teacher import load_teacher
from evaluators.teacher import weights as memory
from evaluators.teacher.weights import fits_in_memory, free_bytes, weight_bytes
from space.input_error import InputError

CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two shards of 3000 bytes together."""
    for name, size in (("a", 1000), ("b", 2000)):
        (tmp_path / name).write_bytes(bytes(size))
    return [tmp_path / "a", tmp_path / "b"]


def test_weights_grow_with_their_type(files: list[Path]) -> None:
    assert weight_bytes(files, torch.bfloat16, torch.bfloat16) == 3000
    assert weight_bytes(files, torch.bfloat16, torch.float32) == 6000
    assert weight_bytes(files, torch.float32, torch.float16) == 1500


def test_free_memory_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 4096)
    assert free_bytes(CPU) == 4096
    assert free_bytes(torch.device("mps")) is None
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (123, 456))
    assert free_bytes(torch.device("cuda")) == 123


@pytest.mark.parametrize(
    ("host", "device", "wanted"),
    [(4000, 4000, True), (3334, 3334, True), (3333, 9999, False), (9999, 3333, False), (None, None, True)],
)
def test_a_tenth_of_the_free_memory_is_left_on_both(
    host: int | None, device: int | None, wanted: bool, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda place: host if place.type == "cpu" else device)
    assert fits_in_memory(files, torch.float32, torch.float32, torch.device("cuda")) is wanted


def test_a_teacher_that_does_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ).save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4000)
    with pytest.raises(InputError) as caught:
        load_teacher(str(tmp_path), revision=None, device=CPU, dtype=torch.float32)
    assert str(caught.value) == (
        f"the teacher has to fit into the memory of its device; {tmp_path} does not fit on cpu. "
        "Give --dtype bfloat16, another --device, or a smaller --model."
    )
