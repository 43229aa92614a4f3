"""A retraining leaves its best model and nothing else; one that fails is a result with a reason."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import PreTrainedModel

from evaluators.distillation import checkpoint
from evaluators.distillation.loop import DistillationResult, DivergenceError, TrainingMonitor, distil
from search.stages import retraining
from search.stages.retraining import RetrainingJob, finished, retrain
from search.stages.run_context import RunContext
from search.stages.task_scores import NO_TASKS
from space.axes.architecture import Architecture
from tests.evaluators.distillation.conftest import forget
from tests.evaluators.distillation.training import Recorded, loss_of, schedule
from tests.evaluators.tiny_models import same_weights, tiny_student

ASSIGNMENT = RetrainingJob(Architecture(64, 128, 4, 2, 5), "search", 1, 12_000)


def empty_bench(folder: Path) -> RunContext:
    return cast(RunContext, SimpleNamespace(directory=folder, config=SimpleNamespace(retrain_tokens=1000)))


@pytest.mark.parametrize(
    "error", [DivergenceError("the loss is nan at step 3"), torch.OutOfMemoryError("out of memory")]
)
def test_a_failure_is_recorded_and_not_tried_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(retraining, "_retrain", fails)
    context = empty_bench(tmp_path)
    assert finished(context, ASSIGNMENT) is None
    result = retrain(context, ASSIGNMENT, lambda tokens: None)
    assert (result.loss, result.path, result.failure) == (None, None, str(error))
    assert finished(context, ASSIGNMENT) == result


def test_any_other_error_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError("disk")

    monkeypatch.setattr(retraining, "_retrain", fails)
    context = empty_bench(tmp_path)
    with pytest.raises(OSError, match="disk"):
        retrain(context, ASSIGNMENT, lambda tokens: None)
    assert finished(context, ASSIGNMENT) is None


# With a student that is trained


class Bench:
    """Trains a tiny student for eight steps, with validations that are given, and keeps what is written."""

    def __init__(self, folder: Path, losses: list[float] | None = None) -> None:
        self.directory, self.losses, self.calls = folder, losses, count()
        self.config = SimpleNamespace(retrain_tokens=1000, schedule="cosine", keep_towers=False)
        self.retraining_targets, self.tasks = Recorded(), NO_TASKS
        self.corpus = SimpleNamespace(validation=torch.zeros(2, 8))
        self.ranking = SimpleNamespace(fingerprint="a ranking")
        self.written: list[PreTrainedModel] = []
        self.seen: list[PreTrainedModel] = []

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        return tiny_student()

    def exact_loss(self, student: PreTrainedModel) -> float:
        return loss_of(student)

    def bits_per_byte(self, loss: float) -> float | None:
        return loss / 2

    def validate(self, student: PreTrainedModel) -> float:
        number = next(self.calls)
        copy = tiny_student()
        copy.load_state_dict(student.state_dict())
        self.seen.append(copy)
        return loss_of(student) if self.losses is None else self.losses[number]

    def train(
        self,
        student: PreTrainedModel,
        tokens: int,
        targets: Recorded,
        advance: Callable[[int], None],
        validations: int,
        checkpointing: Any,
        rate: float | None,
    ) -> DistillationResult:
        assert rate is None, "that of a pruned student"
        watch = TrainingMonitor(validate=self.validate, times=4, advance=advance)
        assert validations == 6
        return distil(student, targets, schedule(), Accelerator(cpu=True), watch, checkpointing)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PreTrainedModel]]:
    """The models that are written."""
    models: list[PreTrainedModel] = []
    monkeypatch.setattr(retraining, "write_model", lambda context, student, path: models.append(student))
    monkeypatch.setattr(retraining, "reload", lambda context, path: models[-1])
    forget()
    yield models
    forget()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_best_weights_are_written_and_nothing_else_is_left(
    tmp_path: Path, written: list[PreTrainedModel]
) -> None:
    context = Bench(tmp_path, [3.0, 2.0, 2.1, 2.05])
    result = retrain(cast(RunContext, context), ASSIGNMENT, lambda tokens: None)
    assert same_weights(written[0], context.seen[1])
    assert result.note == "the weights are those after 96 tokens"
    assert result.loss == loss_of(written[0])
    assert result.bits_per_byte == result.loss / 2
    assert [loss for _, loss in result.curve] == [3.0, 2.0, 2.1, 2.05]
    assert result.failure is None
    assert files(tmp_path) == [f"{ASSIGNMENT.key}.json"]
    assert finished(cast(RunContext, context), ASSIGNMENT) == result


def test_an_early_end_is_no_failure(tmp_path: Path, written: list[PreTrainedModel]) -> None:
    context = Bench(tmp_path, [2.0, math.nan])
    result = retrain(cast(RunContext, context), ASSIGNMENT, lambda tokens: None)
    assert same_weights(written[0], context.seen[0])
    assert result.curve == [(48, 2.0)], "a curve has numbers alone"
    assert result.tokens == 96
    assert result.failure is None
    assert result.note is not None
    assert result.note.startswith("ended early, the validation loss is nan after 96 tokens")


def test_what_a_killed_process_left_is_removed(tmp_path: Path, written: list[PreTrainedModel]) -> None:
    """Killed after the result was written, before its files were removed."""
    context = cast(RunContext, Bench(tmp_path))
    result = retrain(context, ASSIGNMENT, lambda tokens: None)
    saving = retraining._checkpointing(context, ASSIGNMENT)
    assert saving.best is not None
    for path in (saving.path, saving.best):
        path.write_bytes(b"of no use")
    assert finished(context, ASSIGNMENT) == result
    assert files(tmp_path) == [f"{ASSIGNMENT.key}.json"]


def test_on_a_full_disk_it_goes_on_after_space_is_made(
    tmp_path: Path, written: list[PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up when the second of four validations is the best so far."""
    save, calls = save_file, count()

    def save_or_not(*arguments: Any, **keywords: Any) -> None:
        if next(calls) == 2:  # after the first checkpoint and the first best weights
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments, **keywords)

    monkeypatch.setattr(checkpoint, "save_file", save_or_not)
    context = Bench(tmp_path, [4.0, 3.0, 3.1, 3.1])
    with pytest.raises(OSError, match="No space left"):
        retrain(cast(RunContext, context), ASSIGNMENT, lambda tokens: None)
    assert finished(cast(RunContext, context), ASSIGNMENT) is None
    assert len(files(tmp_path)) == 2
    again = Bench(tmp_path, [4.0, 3.0, 3.1, 3.1])
    result = retrain(cast(RunContext, again), ASSIGNMENT, lambda tokens: None)
    assert same_weights(written[0], again.seen[1])
    assert [loss for _, loss in result.curve] == [4.0, 3.0, 3.1, 3.1]
    assert files(tmp_path) == [f"{ASSIGNMENT.key}.json"]
