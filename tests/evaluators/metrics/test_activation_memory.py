"""The activations of a step: that few layers stand for all, and what recomputation and blocks do to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluators.distillation.losses import Loss
from evaluators.metrics import activation_memory
from evaluators.metrics.activation_memory import (
    Depths,
    Head,
    TrainingActivations,
    TrainingWork,
    training_activations,
)
from evaluators.metrics.forward_memory import ForwardWork, moments_bytes, scoring_bytes
from evaluators.metrics.live_bytes import valueless_model
from evaluators.metrics.memory import stream_bytes
from space.axes.axis_map import AxisMap
from space.cutting.extraction import student_map
from tests.evaluators.importance.maps import map_of
from tests.evaluators.tiny_models import tiny_model

WORK = TrainingWork(16, torch.float32, autocast=True, loss=Loss())


@pytest.fixture(scope="module")
def tiny() -> AxisMap:
    return map_of(tiny_model().config)


def head(axis_map: AxisMap) -> Head:
    return Head(Depths.of(axis_map, axis_map.teacher).base.config, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("recompute", [False, True])
def test_few_layers_and_two_micro_batches_stand_for_all(tiny: AxisMap, recompute: bool) -> None:
    work, teacher = replace(WORK, recompute=recompute), head(tiny)
    found = training_activations(tiny, tiny.teacher, work, teacher)
    model = valueless_model(teacher.config, torch.float32)
    whole = activation_memory._step(tiny.config, 3, work, teacher, model)
    foretold = [one + 2 * more for one, more in zip(found.one, found.another, strict=True)]
    assert foretold == pytest.approx(list(whole), rel=0.03)


def test_recomputation_and_eager_attention_are_counted(tiny: AxisMap) -> None:
    plain, recomputed, eager = (
        training_activations(tiny, tiny.teacher, work, head(tiny)).peak(4, 1000, accumulates=True)
        for work in (WORK, replace(WORK, recompute=True), replace(WORK, eager=True))
    )
    assert recomputed < plain < eager


def test_gradients_come_as_activations_go() -> None:
    step = TrainingActivations((100, 80), (50, 60), (10, 5), tied=7)
    assert step.peak(1, 1000, accumulates=True) == 1100
    assert step.peak(3, 1000, accumulates=True) == 1200
    assert step.peak(1, 1000, accumulates=False) == 1017
    assert step.peak(3, 10, accumulates=False) == 200


def test_a_student_is_counted_at_its_own_sizes(tiny: AxisMap) -> None:
    smaller = replace(tiny.teacher, mlp=tiny.teacher.mlp // 2)
    less = training_activations(tiny, smaller, WORK, head(tiny))
    more = training_activations(tiny, tiny.teacher, WORK, head(tiny))
    assert less.one < more.one
    assert student_map(tiny, smaller, range(smaller.layers)).teacher == smaller


def test_moments_leave_their_sums(tiny: AxisMap) -> None:
    peak, kept = moments_bytes(ForwardWork(tiny, tiny.teacher, 16, torch.float32, blocks=2))
    sizes = tiny.teacher
    read = 8 * (sizes.mlp**2 + (sizes.heads * tiny.head_dim) ** 2) * sizes.layers
    assert kept == read + stream_bytes(tiny)
    assert peak > kept


def test_a_validation_takes_a_slice_of_logits(tiny: AxisMap) -> None:
    work = ForwardWork(tiny, tiny.teacher, 16, torch.float32, blocks=2)
    assert scoring_bytes(work) > 32 * tiny.config.vocab_size * 4
