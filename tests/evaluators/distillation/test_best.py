"""The best weights of a training are those that the student ends with."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from accelerate import Accelerator
from transformers import PreTrainedModel

from evaluators.distillation import saving as best_module
from evaluators.distillation.checkpoint import read_metadata, write_tensors
from evaluators.distillation.loop import (
    Checkpointing,
    DistillationResult,
    DivergenceError,
    TrainingMonitor,
    distil,
)
from tests.evaluators.distillation.training import BLOCK, BLOCKS_A_STEP, STEPS, Recorded, schedule
from tests.evaluators.tiny_models import same_weights, tiny_student, weights

STEP = BLOCKS_A_STEP * BLOCK


class Judge:
    """Validates with losses that are given, and remembers the weights."""

    def __init__(self, *losses: float, stop: int | None = None, first: int = 0) -> None:
        self.losses, self.stop, self.calls = losses, stop, count(first)
        self.seen: dict[int, PreTrainedModel] = {}

    def __call__(self, student: PreTrainedModel) -> float:
        number = next(self.calls)
        if number == self.stop:
            raise KeyboardInterrupt
        copy = tiny_student()
        copy.load_state_dict(weights(student))
        self.seen[number] = copy
        return self.losses[number]


Run = Callable[[PreTrainedModel, Judge], DistillationResult]


@pytest.fixture
def saving(tmp_path: Path) -> Checkpointing:
    return Checkpointing(
        path=tmp_path / "student.safetensors", best=tmp_path / "best.safetensors", key="a training", seconds=0
    )


@pytest.fixture
def run(accelerator: Accelerator, saving: Checkpointing) -> Run:
    """Trains with a validation after each second step."""

    def train(student: PreTrainedModel, judge: Judge) -> DistillationResult:
        watch = TrainingMonitor(validate=judge, times=4)
        return distil(student, Recorded(), schedule(), accelerator, watch, saving)

    return train


@pytest.mark.parametrize(
    ("losses", "best"),
    [((4, 3, 2, 1), 3), ((4, 2, 3, 2.1), 1), ((1, 1.05, 1.02, 1.04), 0), ((2, 2, 2, 2), 0)],
)
def test_the_student_ends_with_the_best_weights(run: Run, losses: tuple[float, ...], best: int) -> None:
    student, judge = tiny_student(), Judge(*losses)
    outcome = run(student, judge)
    assert same_weights(student, judge.seen[best])
    assert not same_weights(student, judge.seen[(best + 1) % 4])
    assert outcome.best_tokens == (best + 1) * 2 * STEP
    assert outcome.tokens == STEPS * STEP
    assert [loss for _, loss in outcome.curve] == list(losses)
    note = None if best == 3 else f"the weights are those after {outcome.best_tokens} tokens"
    assert outcome.note == note


@pytest.mark.parametrize(("losses", "written"), [((4, 3, 2, 1), 3), ((1, 2, 2, 0.5), 1), ((1, 1, 1, 1), 1)])
def test_it_is_written_when_it_gets_better_but_not_at_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, losses: tuple[float, ...], written: int
) -> None:
    calls = count()

    def write(*arguments: object) -> None:
        next(calls)
        write_tensors(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(best_module, "write_tensors", write)
    # Twice two would end it.
    monkeypatch.setattr("evaluators.distillation.schedule._WORSE", 10)
    run(tiny_student(), Judge(*losses))
    assert next(calls) == written


@pytest.mark.parametrize("stop", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
@pytest.mark.parametrize("losses", [(4, 3, 2, 1), (1, 1.05, 1.02, 1.04), (2, 1, 1.05, 1.04)])
def test_stopped_and_started_again_they_are_the_same(
    run: Run, saving: Checkpointing, losses: tuple[float, ...], stop: int
) -> None:
    student, undisturbed = tiny_student(), tiny_student()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_student(), Judge(*losses, stop=stop))
    outcome = run(student, Judge(*losses, first=stop))
    assert [loss for _, loss in outcome.curve] == list(losses)
    saving.remove()
    assert list(saving.path.parent.iterdir()) == []
    wanted = run(undisturbed, Judge(*losses))
    assert same_weights(student, undisturbed)
    assert outcome.best_tokens == wanted.best_tokens


@pytest.mark.parametrize(
    ("losses", "steps", "reason"),
    [
        ((2, 2.3, 2.4, 1), 6, "the validation loss rose from 2.0000 to 2.3000 and 2.4000 after 144 tokens"),
        ((2, math.nan), 4, "the validation loss is nan after 96 tokens"),
    ],
)
def test_a_training_that_gets_worse_ends_with_the_best_and_the_reason(
    run: Run, losses: tuple[float, ...], steps: int, reason: str
) -> None:
    student, judge = tiny_student(), Judge(*losses)
    outcome = run(student, judge)
    assert same_weights(student, judge.seen[0])
    assert (outcome.tokens, outcome.best_tokens) == (steps * STEP, 2 * STEP)
    assert outcome.ended_early == reason
    assert outcome.note == f"ended early, {reason}; the weights are those after 48 tokens"


def test_with_no_number_at_first_there_is_nothing_to_end_with(run: Run) -> None:
    with pytest.raises(DivergenceError, match=r"^the validation loss is nan after 48 tokens$"):
        run(tiny_student(), Judge(math.nan))


def test_without_a_file_for_the_best_the_last_weights_stay(accelerator: Accelerator, tmp_path: Path) -> None:
    student, judge = tiny_student(), Judge(1, 2, 3, 4)
    saving = Checkpointing(path=tmp_path / "student.safetensors", key="a training")
    watch = TrainingMonitor(validate=judge, times=4)
    outcome = distil(student, Recorded(), schedule(), accelerator, watch, saving)
    assert same_weights(student, judge.seen[3])
    assert (outcome.ended_early, outcome.best_tokens, outcome.note) == (None, None, None)


def test_the_best_of_another_training_is_not_used(accelerator: Accelerator, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    for key, losses, best in (("one", (0.5, 0.5, 0.5, 0.5), 0), ("other", (4, 1, 1.05, 1.05), 1)):
        student, judge = tiny_student(), Judge(*losses)
        saving = Checkpointing(path=tmp_path / key, key=key, best=path)
        distil(student, Recorded(), schedule(), accelerator, TrainingMonitor(validate=judge, times=4), saving)
        assert same_weights(student, judge.seen[best])
        about = read_metadata(path)
        assert about is not None
        assert about["key"] == key
