"""Nested training: one student alone trains as it does outside, several teach one another, and it resumes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from evaluators.distillation.loop import (
    Checkpointing,
    DistillationResult,
    TrainingMonitor,
    distil,
    distil_nested,
)
from evaluators.distillation.nested import Draw
from space.axes.architecture import Architecture
from space.cutting.extraction import saved_tensors, sort_by_importance
from space.cutting.shared_weights import SharedWeights
from space.verification.contract import random_ranking
from tests.evaluators.distillation.test_any_decoder import divergence
from tests.evaluators.distillation.training import BLOCK
from tests.evaluators.distillation.whole_training import Small, plan
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import tiny_model

TEACHER = tiny_model(seed=3)
MAP = map_of(TEACHER.config)
RANKING = random_ranking(MAP, 1)
#: Smaller along one axis each, and along all.
POOL = [
    MAP.complete(changes)  # type: ignore[arg-type]
    for changes in ({"hidden": 12}, {"mlp": 12}, {"layers": 2}, {"hidden": 8, "mlp": 16, "layers": 2})
]
STEPS = 12


def shared_weights() -> SharedWeights:
    canonical = sort_by_importance(saved_tensors(TEACHER, MAP), MAP, RANKING)
    return SharedWeights(canonical, MAP, RANKING)


def in_turn(step: int) -> Architecture:
    return POOL[step % len(POOL)]


def train(
    shared: SharedWeights,
    accelerator: Accelerator,
    draw: Draw = in_turn,
    steps: int = STEPS,
    path: Path | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> DistillationResult:
    files = Checkpointing(path=path, key="a training", seconds=0) if path else None
    monitor = TrainingMonitor(advance=advance)
    return distil_nested(shared, draw, Small(), plan(steps), accelerator, monitor, files)


@pytest.mark.parametrize("architecture", POOL, ids=lambda one: one.label)
def test_one_student_trains_as_it_does_alone(accelerator: Accelerator, architecture: Architecture) -> None:
    shared = shared_weights()
    before = {name: values.detach().clone() for name, values in shared.tensors().items()}
    alone = shared.extract(architecture)
    distil(alone, Small(), plan(STEPS), accelerator)
    train(shared, accelerator, lambda step: architecture)
    for name, values in shared.extract(architecture).state_dict().items():
        torch.testing.assert_close(values, alone.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(values, before[name]) for name, values in shared.tensors().items())


def test_all_learn(accelerator: Accelerator) -> None:
    """What is taught: the teacher's predictions on the text of the training."""
    shared = shared_weights()
    before = [divergence(shared.extract(one), Small()) for one in POOL]
    train(shared, accelerator, steps=60)
    after = [divergence(shared.extract(one), Small()) for one in POOL]
    assert all(now < 0.8 * then for now, then in zip(after, before, strict=True)), (before, after)


def test_a_layer_that_nobody_has_stays(accelerator: Accelerator) -> None:
    shared, fewer = shared_weights(), MAP.complete({"layers": 2})  # type: ignore[dict-item]
    (dropped,) = set(range(MAP.teacher.layers)) - set(shared.kept_layers(fewer))
    before = {name: values.detach().clone() for name, values in shared.tensors().items()}
    train(shared, accelerator, lambda step: fewer)
    same = {name for name, values in shared.tensors().items() if torch.equal(values, before[name])}
    assert same == {name for name in before if f"layers.{dropped}." in name}


def test_stopped_and_started_again_it_comes_to_the_same(accelerator: Accelerator, tmp_path: Path) -> None:
    undisturbed, stopped = shared_weights(), shared_weights()
    train(undisturbed, accelerator, path=tmp_path / "one.safetensors")
    calls, path = count(), tmp_path / "other.safetensors"

    def interrupt(tokens: int) -> None:
        if next(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, accelerator, path=path, advance=interrupt)
    told: list[int] = []
    resumed = shared_weights()
    outcome = train(resumed, accelerator, path=path, advance=told.append)
    assert told[0] == 6 * plan(STEPS).tokens_per_step
    assert outcome.tokens == STEPS * 4 * BLOCK
    for one, other in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
