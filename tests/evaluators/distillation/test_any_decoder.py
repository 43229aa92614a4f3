"""Distillation of classes that are built unlike Llama: student and teacher each have their own head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from evaluators.distillation.loop import distil
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.targets.batch import Count, Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.live import Hidden, LiveTargets
from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.distillation.training import BLOCK, TOKENS, schedule
from tests.evaluators.tiny_types import TYPES, model_of

#: Of all that are compared, those that are trained by default, too.
FEW = {"gemma2", "granite", "gpt2", "gpt_oss", "minicpm3", "nemotron_h"}


def divergence(student: PreTrainedModel, targets: Targets) -> float:
    module, batch = Distillation(student, targets, Loss()), targets.batch(torch.arange(targets.blocks))
    with torch.no_grad():
        return float(module(batch, Count.of(targets.tokens))[0])


@pytest.mark.parametrize("model_type", TYPES)
def test_the_divergence_is_that_of_the_models_own_logits(model_type: str) -> None:
    teacher, student = model_of(model_type, seed=3), model_of(model_type, seed=4)
    with torch.no_grad():
        wanted = teacher(input_ids=TOKENS.long()).logits.double().log_softmax(-1)
        mine = student(input_ids=TOKENS.long()).logits.double().log_softmax(-1)
    kl = float((wanted.exp() * (wanted - mine)).sum(-1).mean())
    assert divergence(student, LiveTargets(teacher, TOKENS)) == pytest.approx(kl, rel=1e-4)
    assert divergence(teacher, LiveTargets(teacher, TOKENS)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in TYPES]
)
def test_cached_targets_lower_the_divergence_to_the_teacher(
    accelerator: Accelerator, tmp_path: Path, model_type: str
) -> None:
    teacher, student = model_of(model_type, seed=3), model_of(model_type, seed=4)
    targets = CachedTargets(teacher, TOKENS, Hidden(teacher), tmp_path, "a fingerprint")
    targets.fill()
    before = divergence(student, LiveTargets(teacher, TOKENS))
    distil(student, targets, schedule(20), accelerator)
    assert divergence(student, LiveTargets(teacher, TOKENS)) < 0.8 * before


@pytest.mark.parametrize(
    "model_type",
    [
        "gemma2",
        "mixtral",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "gpt_oss", "phi", "bloom")),
    ],
)
def test_mixed_precision_lowers_it_too(accelerators: Accelerators, model_type: str) -> None:
    teacher, student = model_of(model_type, seed=3), model_of(model_type, seed=4)
    targets = LiveTargets(teacher, TOKENS)
    before = divergence(student, targets)
    distil(student, targets, schedule(20), accelerators("bf16"))
    assert divergence(student, targets) < 0.8 * before
    assert TOKENS.shape[1] == BLOCK
