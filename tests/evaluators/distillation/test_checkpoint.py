from __future__ import annotations

import errno
import json
import resource
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from evaluators.distillation import checkpoint
from evaluators.distillation.checkpoint import (
    Position,
    load_checkpoint,
    save_checkpoint,
    temporary_folder,
)
from evaluators.distillation.schedule import RECENT, Rollback
from tests.evaluators.tiny_models import random_tokens, same_weights, tiny_student

KEY = "a training"


def trained(steps: int, seed: int = 1) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """A student after some steps of the same gradient descent as in the loop."""
    student = tiny_student(seed, tie_word_embeddings=True)
    groups = [{"params": [p]} for p in student.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=0.01, fused=True)
    for step in range(steps):
        learn(student, optimizer, step)
    return student, optimizer


def learn(student: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    tokens = random_tokens(2, 6, seed=step).long()
    optimizer.zero_grad()
    student(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a checkpoint after three steps, in a folder that did not exist."""
    path = tmp_path / "retraining" / "student.safetensors"
    save_checkpoint(path, KEY, Position(3, [(1024, 3.5), (2048, 3.25)], 12.5), *trained(3))
    return path


def test_a_training_goes_on_as_if_it_had_not_stopped(path: Path) -> None:
    undisturbed, optimizer = trained(5)
    student, other = trained(0, seed=2)
    position = load_checkpoint(path, KEY, student, other)
    assert position == Position(3, [(1024, 3.5), (2048, 3.25)], 12.5)
    for step in (3, 4):
        learn(student, other, step)
    assert same_weights(student, undisturbed)
    states, others = optimizer.state_dict()["state"], other.state_dict()["state"]
    assert states.keys() == others.keys()
    for number, wanted in states.items():
        mine = others[number]
        assert mine.keys() == wanted.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(mine[name], wanted[name]) for name in mine)
        assert all(mine[name].dtype == wanted[name].dtype for name in mine)


def test_losses_survive_to_the_last_bit(tmp_path: Path) -> None:
    path, curve = tmp_path / "student.safetensors", [(1, 0.1 + 0.2), (2, 1 / 3)]
    student, optimizer = trained(1)
    save_checkpoint(path, KEY, Position(1, curve, 1 / 7), student, optimizer)
    assert load_checkpoint(path, KEY, student, optimizer) == Position(1, curve, 1 / 7)


def test_the_whole_position_survives(tmp_path: Path) -> None:
    path, (student, optimizer) = tmp_path / "student.safetensors", trained(1)
    setback = Rollback(step=40, what="loss", value=7.5, back_to=30, rate=0.1 / 3)
    position = Position(50, [], 1.0, first=2 / 3, recent=deque([0.1, 0.7], RECENT), setback=setback)
    save_checkpoint(path, KEY, position, student, optimizer)
    loaded = load_checkpoint(path, KEY, student, optimizer)
    assert loaded == position
    assert loaded is not None
    assert loaded.recent.maxlen == RECENT


def test_what_changes_besides_is_kept_too(tmp_path: Path) -> None:
    path, (student, optimizer) = tmp_path / "student.safetensors", trained(1)
    save_checkpoint(path, KEY, Position(1, [], 1.0), student, optimizer, {"alpha": torch.tensor(0.3)})
    alpha = torch.tensor(1.0)
    load_checkpoint(path, KEY, student, optimizer, {"alpha": alpha})
    assert alpha == torch.tensor(0.3)


def foreign(path: Path) -> None:
    save_file({"model.a": torch.zeros(1)}, path, metadata={"format": "pt"})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "header cut short": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "weights cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "something else": lambda path: path.write_text("not a checkpoint"),
    "a model's weights": foreign,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_file_that_is_no_whole_checkpoint_changes_nothing(
    path: Path, damage: Callable[[Path], object]
) -> None:
    damage(path)
    assert_untouched(path, KEY)


def test_the_checkpoint_of_another_training_changes_nothing(path: Path) -> None:
    assert_untouched(path, "another training")


def assert_untouched(path: Path, key: str) -> None:
    (student, optimizer), (same, same_optimizer) = trained(2, seed=2), trained(2, seed=2)
    assert load_checkpoint(path, key, student, optimizer) is None
    learn(student, optimizer, 2)
    learn(same, same_optimizer, 2)
    assert same_weights(student, same)


def test_tied_weights_are_written_once_and_the_rest_is_text_to_read(path: Path) -> None:
    with safe_open(path, "pt") as file:
        names, about = set(file.keys()), json.loads(file.metadata()["slimsearch"])
    assert "model.model.embed_tokens.weight" in names
    assert "model.lm_head.weight" not in names
    curve = [[1024, 3.5], [2048, 3.25]]
    more: dict[str, object] = {"first": None, "recent": [], "setback": None}
    assert about == {"key": KEY, "step": 3, "curve": curve, "seconds": 12.5, **more}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within the context the system refuses to write beyond ``size`` bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_leaves_the_earlier_checkpoint(path: Path) -> None:
    student, optimizer = trained(4)
    with pytest.raises(OSError, match="File too large") as error, files_of_at_most(1000):
        save_checkpoint(path, KEY, Position(4, [], 1.0), student, optimizer)
    assert error.value.errno == errno.EFBIG
    assert [file.name for file in path.parent.iterdir()] == ["student.safetensors"]
    assert load_checkpoint(path, KEY, *trained(0)) == Position(3, [(1024, 3.5), (2048, 3.25)], 12.5)


def test_a_full_disk_is_said_and_leaves_the_earlier_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of safetensors on a file system with too little space."""

    def full(tensors: object, new: Path, metadata: object) -> None:
        new.write_bytes(b"the beginning")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_checkpoint(path, KEY, Position(4, [], 1.0), *trained(4))
    assert error.value.errno == errno.ENOSPC
    assert [file.name for file in path.parent.iterdir()] == ["student.safetensors"]
    assert load_checkpoint(path, KEY, *trained(0)) == Position(3, [(1024, 3.5), (2048, 3.25)], 12.5)
    monkeypatch.undo()
    save_checkpoint(path, KEY, Position(4, [], 1.0), *trained(4))
    assert load_checkpoint(path, KEY, *trained(0)) == Position(4, [], 1.0)


def test_what_a_killed_process_left_of_a_file_is_removed(path: Path) -> None:
    temporary_folder(path).mkdir()
    (temporary_folder(path) / ".tmp1234").write_bytes(b"of another process")
    save_checkpoint(path, KEY, Position(4, [], 1.0), *trained(4))
    assert [file.name for file in path.parent.iterdir()] == ["student.safetensors"]
