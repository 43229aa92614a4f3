"""A model comes to its device for a context, and goes back to the host tensors that it had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel

from evaluators.huggingface import residence
from evaluators.huggingface.final_states import final_states, head_parameters, logits_of
from evaluators.huggingface.residence import Residence
from evaluators.teacher import load_teacher
from space.verification.contract import random_teacher
from tests.small_search import write_teacher

CPU = torch.device("cpu")
TOKENS = torch.arange(6)[None]


class Moved:
    """Copies stand for the device, and are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies: list[Tensor] = []
        monkeypatch.setattr(residence, "transfer", self.copy)

    def copy(self, values: Tensor, device: torch.device) -> Tensor:
        self.copies.append(values.clone())
        return self.copies[-1]

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for values in self.copies)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Moved:
    return Moved(monkeypatch)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=request.param,
    )
    return random_teacher(config).requires_grad_(False)


def addresses(model: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]


def size(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def test_every_tensor_comes_once_and_nothing_is_copied_back(model: PreTrainedModel, moved: Moved) -> None:
    home, expected = addresses(model), model(TOKENS).logits
    place = Residence(model, CPU, stays=False)
    with place.on_device():
        assert not set(home) & set(addresses(model))
        assert moved.bytes == size(model)
        assert torch.equal(model(TOKENS).logits, expected)
    assert addresses(model) == home
    assert len(moved.copies) == len(home)


def test_contexts_nest(model: PreTrainedModel, moved: Moved) -> None:
    home, place = addresses(model), Residence(model, CPU, stays=False)
    with place.head_on_device():
        head = moved.bytes
        assert head == sum(values.nbytes for values in head_parameters(model))
        assert 0 < head < size(model)
        with place.on_device():
            with place.on_device():
                assert moved.bytes == size(model)
            assert not set(home) & set(addresses(model))
        assert len(set(home) & set(addresses(model))) == len(home) - len(head_parameters(model))
    assert addresses(model) == home


def test_the_head_alone_makes_logits(model: PreTrainedModel, moved: Moved) -> None:
    final, expected = final_states(model, TOKENS)[0], model(TOKENS).logits[0]
    with Residence(model, CPU, stays=False).head_on_device():
        for copied in moved.copies:
            copied.mul_(2)
        torch.testing.assert_close(logits_of(model, final), 2 * expected)
    torch.testing.assert_close(logits_of(model, final), expected)


def test_a_failure_leaves_nothing_behind(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    home, place, calls = addresses(model), Residence(model, CPU, stays=False), []

    def full(values: Tensor, device: torch.device) -> Tensor:
        calls.append(device)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return values.clone()

    monkeypatch.setattr(residence, "transfer", full)
    with pytest.raises(torch.OutOfMemoryError), place.on_device():
        pass
    assert addresses(model) == home
    with place.on_device():
        assert not set(home) & set(addresses(model)), "and it can be tried again"


def test_what_stays_is_not_moved(model: PreTrainedModel, moved: Moved) -> None:
    home, place = addresses(model), Residence(model)
    assert place.device == CPU
    with place.on_device(), place.head_on_device():
        assert addresses(model) == home
    assert moved.copies == []


def test_a_teacher_on_the_host_is_mapped_from_its_own_file(tmp_path: Path, moved: Moved) -> None:
    write_teacher(tmp_path)
    teacher = load_teacher(str(tmp_path), revision=None, device=CPU, dtype=torch.bfloat16, stays=False)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    file = str(tmp_path / "model.safetensors")
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines if line[-1] == file]

    def mapped() -> bool:
        return all(
            any(start <= parameter.data_ptr() < end for start, end in spans)
            for parameter in teacher.model.parameters()
        )

    assert mapped()
    with teacher.on_device():
        assert not mapped()
    assert mapped()
    assert moved.bytes == size(teacher.model)


@pytest.mark.gpu
def test_the_device_holds_it_for_as_long_as_it_is_needed(model: PreTrainedModel) -> None:
    device, expected = torch.device("cuda"), model(TOKENS).logits
    place, before = Residence(model, device, stays=False), torch.cuda.memory_allocated()
    with place.head_on_device():
        head = torch.cuda.memory_allocated() - before
        with place.on_device():
            assert torch.cuda.memory_allocated() - before >= size(model)
            torch.testing.assert_close(model(TOKENS.to(device)).logits.cpu(), expected)
        assert torch.cuda.memory_allocated() - before == head
    assert torch.cuda.memory_allocated() == before
    torch.testing.assert_close(model(TOKENS).logits, expected)
