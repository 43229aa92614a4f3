"""Whole trainings with AdamW in 8 bits: stopped, branched, rolled back, and of classes unlike Llama."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open

from evaluators.distillation.loop import TrainingMonitor, distil
from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.targets.live import LiveTargets
from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.distillation.test_any_decoder import divergence
from tests.evaluators.distillation.training import BLOCK, TOKENS, Recorded, loss_of, schedule
from tests.evaluators.distillation.whole_training import plan, train
from tests.evaluators.tiny_models import same_weights, tiny_student
from tests.evaluators.tiny_types import model_of

EIGHT = OptimizerName.ADAMW_8BIT
#: Matrices of 64 × 65 values: the last 64 fill no block.
SIZES = {"hidden_size": 64, "intermediate_size": 65}
STEPS = 8


@pytest.fixture
def half(accelerators: Accelerators) -> Accelerator:
    return accelerators("bf16")


@pytest.mark.parametrize("stop", [5, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 2, STEPS))])
def test_stopped_at_any_step_and_started_again_it_ends_in_the_same_bits(
    half: Accelerator, tmp_path: Path, stop: int
) -> None:
    undisturbed, student, path = (
        tiny_student(**SIZES),
        tiny_student(**SIZES),
        tmp_path / "student.safetensors",
    )
    options: dict[str, Any] = {"most": 3, "states": True, "optimizer": EIGHT}
    wanted = train(undisturbed, half, plan(STEPS), **options)
    calls = count()

    def interrupt(tokens: int) -> None:
        torch.rand(())
        if next(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_student(**SIZES), half, plan(STEPS), path=path, advance=interrupt, **options)
    outcome = train(student, half, plan(STEPS), path=path, **options)
    assert same_weights(student, undisturbed)
    assert outcome.curve == wanted.curve
    with safe_open(path, "pt") as file:
        dtypes = {name.split(".")[-1]: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert dtypes["codes"] == torch.uint8
    assert dtypes["scales"] == dtypes["rest"] == torch.float32


def test_a_longer_training_from_a_branch_is_the_longer_one_undisturbed(
    half: Accelerator, tmp_path: Path
) -> None:
    branch, (short, long, undisturbed) = (
        tmp_path / "branch.safetensors",
        (tiny_student(**SIZES) for _ in "123"),
    )
    options: dict[str, Any] = {"stem": "one student", "optimizer": EIGHT}
    train(short, half, plan(10), path=tmp_path / "short.safetensors", branch=branch, **options)
    told: list[int] = []
    files: dict[str, Any] = {"path": tmp_path / "long.safetensors", "start": branch}
    train(long, half, plan(16), advance=told.append, **files, **options)
    train(undisturbed, half, plan(16), optimizer=EIGHT)
    assert told[0] == 8 * 4 * BLOCK
    assert same_weights(long, undisturbed)


def test_the_best_weights_come_back(half: Accelerator, tmp_path: Path) -> None:
    losses = iter((3.0, 2.0, 2.5, 2.6))
    kept = list[torch.Tensor]()

    def validate(model: Any) -> float:
        kept.append(model.get_parameter("lm_head.weight").detach().clone())
        return next(losses)

    student = tiny_student(**SIZES)
    files: dict[str, Any] = {"path": tmp_path / "a.safetensors", "best": tmp_path / "best.safetensors"}
    outcome = train(student, half, plan(STEPS), validate=validate, optimizer=EIGHT, **files)
    assert outcome.best_tokens == 4 * 4 * BLOCK
    assert torch.equal(student.get_parameter("lm_head.weight"), kept[1])


def test_it_learns_as_adamw_does(accelerators: Accelerators) -> None:
    losses = dict[OptimizerName, float]()
    for name in OptimizerName:
        student = tiny_student(**SIZES)
        before = loss_of(student)
        watch = TrainingMonitor(validate=loss_of, times=1)
        outcome = distil(student, Recorded(), schedule(30), accelerators("bf16"), watch, optimizer=name)
        assert {one.dtype for one in student.parameters()} == {name.weights}
        losses[name] = before - outcome.curve[-1][1]
    assert losses[EIGHT] == pytest.approx(losses[OptimizerName.ADAMW], rel=0.1)


@pytest.mark.parametrize(
    "model_type",
    [
        "gemma2",
        "bloom",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "mixtral", "gpt_oss", "phi")),
    ],
)
def test_classes_unlike_llama_learn_too(half: Accelerator, model_type: str) -> None:
    teacher, student = model_of(model_type, seed=3), model_of(model_type, seed=4)
    targets = LiveTargets(teacher, TOKENS)
    before = divergence(student, targets)
    distil(student, targets, schedule(20), half, optimizer=EIGHT)
    assert divergence(student.float(), targets) < 0.8 * before
