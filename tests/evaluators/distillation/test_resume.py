from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from transformers import PreTrainedModel

from evaluators.distillation import loop, saving, training
from evaluators.distillation.checkpoint import Position
from evaluators.distillation.loop import Checkpointing, TrainingMonitor, distil
from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.distillation.training import (
    BLOCK,
    BLOCKS_A_STEP,
    STEPS,
    Recorded,
    loss_of,
    schedule,
)
from tests.evaluators.tiny_models import same_weights, tiny_student


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("stop", [5, STEPS, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_stopped_and_started_again_it_ends_in_the_same_weights(
    accelerators: Accelerators, tmp_path: Path, stop: int, precision: str
) -> None:
    accelerator, undisturbed = accelerators(precision), tiny_student()
    wanted = distil(
        undisturbed, Recorded(), schedule(), accelerator, TrainingMonitor(validate=loss_of, times=4)
    )

    saving = Checkpointing(path=tmp_path / "student.safetensors", key="a training", seconds=0)
    calls = count()

    def interrupt(tokens: int) -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt

    watch = TrainingMonitor(validate=loss_of, times=4, advance=interrupt)
    with pytest.raises(KeyboardInterrupt):
        distil(tiny_student(), Recorded(), schedule(), accelerator, watch, saving)

    told: list[int] = []
    student, targets = tiny_student(), Recorded()
    watch = TrainingMonitor(validate=loss_of, times=4, advance=told.append)
    outcome = distil(student, targets, schedule(), accelerator, watch, saving)
    assert same_weights(student, undisturbed)
    assert (outcome.tokens, outcome.curve) == (wanted.tokens, wanted.curve)
    assert told[0] == (stop - 1) * BLOCKS_A_STEP * BLOCK
    assert sum(told) == outcome.tokens
    assert len(targets.asked) == STEPS - (stop - 1)


def test_stopped_while_it_validates_it_validates_again(accelerator: Accelerator, tmp_path: Path) -> None:
    undisturbed = tiny_student()
    wanted = distil(
        undisturbed, Recorded(), schedule(), accelerator, TrainingMonitor(validate=loss_of, times=4)
    )
    saving = Checkpointing(path=tmp_path / "student.safetensors", key="a training", seconds=0)
    calls = count()

    def validate(model: PreTrainedModel) -> float:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return loss_of(model)

    watch, student = TrainingMonitor(validate=validate, times=4), tiny_student()
    with pytest.raises(KeyboardInterrupt):
        distil(tiny_student(), Recorded(), schedule(), accelerator, watch, saving)
    assert distil(student, Recorded(), schedule(), accelerator, watch, saving).curve == wanted.curve
    assert same_weights(student, undisturbed)


def test_the_checkpoint_of_another_training_is_not_used(accelerator: Accelerator, tmp_path: Path) -> None:
    path, student, fresh = tmp_path / "student.safetensors", tiny_student(), tiny_student()
    other = Checkpointing(path=path, key="another training", seconds=0)
    distil(tiny_student(seed=9), Recorded(), schedule(3), accelerator, checkpointing=other)
    mine = Checkpointing(path=path, key="a training", seconds=0)
    distil(student, Recorded(), schedule(), accelerator, checkpointing=mine)
    distil(fresh, Recorded(), schedule(), accelerator)
    assert same_weights(student, fresh)


def test_seconds_are_counted_once_over_all_processes(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that goes on by one second whenever it is read."""
    ticks = count()
    for module in (loop, training):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    saving = Checkpointing(path=tmp_path / "student.safetensors", key="a training", seconds=0)
    outcome = distil(tiny_student(), Recorded(), schedule(), accelerator, checkpointing=saving)
    end = next(ticks)
    assert outcome.seconds == end - 1
    with safe_open(saving.path, "pt") as file:
        saved = json.loads(file.metadata()["slimsearch"])["seconds"]
    assert 0 < saved < outcome.seconds
    again = distil(tiny_student(), Recorded(), schedule(), accelerator, checkpointing=saving)
    assert again.seconds == saved + (next(ticks) - 1) - (end + 1)


@pytest.mark.parametrize(
    ("seconds", "saving_takes", "saved"),
    [
        (25, 0.0, [0, 3, 6]),
        (25, 1.0, [0, 3, 6]),  # it may take a twentieth: at most every 20 s
        (25, 2.0, [0, 4, 8]),  # every 40 s
        (0, 2.0, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_checkpoints_come_after_the_seconds_asked_for_however_often_it_validates(
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    saving_takes: float,
    saved: list[int],
) -> None:
    """With a clock that goes on by ten seconds a step, and while it saves."""
    now, found = [0.0], list[int]()

    def step(tokens: int) -> None:
        now[0] += 10 if tokens else 0

    def save(path: Path, key: str, position: Position, *_: object, **__: object) -> None:
        found.append(position.step)
        now[0] += saving_takes

    for module in (loop, training):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(saving, "save_checkpoint", save)
    files = Checkpointing(path=tmp_path / "student.safetensors", key="a training", seconds=seconds)
    watch = TrainingMonitor(validate=loss_of, times=STEPS, advance=step)
    distil(tiny_student(), Recorded(), schedule(), accelerator, watch, files)
    assert found == saved


def test_random_numbers_go_on_where_they_were(accelerator: Accelerator, tmp_path: Path) -> None:
    """Drawn after each step and after all."""
    saving = Checkpointing(path=tmp_path / "student.safetensors", key="a training", seconds=0)

    def drawn(seed: int, stop: int) -> list[float]:
        values = list[float]()

        def draw(tokens: int) -> None:
            if len(values) == stop:
                raise KeyboardInterrupt
            if tokens == BLOCKS_A_STEP * BLOCK:
                values.append(torch.rand(()).item())

        torch.manual_seed(seed)
        distil(tiny_student(), Recorded(), schedule(), accelerator, TrainingMonitor(advance=draw), saving)
        return values

    with pytest.raises(KeyboardInterrupt):
        drawn(seed=7, stop=5)
    resumed = drawn(seed=8, stop=-1)
    saving.remove()
    assert drawn(seed=7, stop=-1)[-len(resumed) :] == resumed
    assert len(resumed) == STEPS - 5
