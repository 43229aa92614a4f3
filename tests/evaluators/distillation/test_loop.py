from __future__ import annotations

import gc
import pickle
import weakref
from contextlib import nullcontext
from itertools import count, groupby
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluators.distillation.loop import DivergenceError, TrainingMonitor, distil
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.targets.batch import Count
from evaluators.distillation.targets.live import LiveTargets
from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.distillation.training import (
    BLOCK,
    BLOCKS_A_STEP,
    TOKENS,
    VALIDATION,
    Recorded,
    loss_of,
    schedule,
)
from tests.evaluators.tiny_models import random_tokens, same_weights, tiny_student, weights

# What it learns


def test_the_loss_falls_to_almost_nothing_on_a_text_that_repeats(accelerator: Accelerator) -> None:
    tokens = random_tokens(1, BLOCK).repeat(4, 1)
    targets, student = Recorded(tokens), tiny_student()
    before = divergence(student, targets)
    distil(student, targets, schedule(150, peak_rate=0.02), accelerator)
    assert divergence(student, targets) < 0.02 * before


def divergence(student: PreTrainedModel, targets: LiveTargets) -> float:
    with torch.no_grad():
        batch = targets.batch(torch.arange(4))
        return float(Distillation(student, targets, Loss())(batch, Count.of(batch.tokens))[0])


def test_the_teacher_learns_nothing(accelerator: Accelerator) -> None:
    targets = Recorded()
    before = weights(targets.teacher)
    distil(tiny_student(), targets, schedule(), accelerator)
    assert all(torch.equal(value, before[name]) for name, value in weights(targets.teacher).items())


def test_its_steps_are_adamw_on_the_clipped_gradient_of_the_mean(accelerator: Accelerator) -> None:
    """Against PyTorch alone; the teacher is sure of itself, so that gradients are steep enough to clip."""
    targets, student, by_hand = Recorded(), tiny_student(), tiny_student()
    with torch.no_grad():
        targets.teacher.get_parameter("lm_head.weight").mul_(8)
    distil(student, targets, schedule(5), accelerator)

    matrices = [p for p in by_hand.parameters() if p.ndim == 2]
    vectors = [p for p in by_hand.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer, norms = torch.optim.AdamW(groups, betas=(0.9, 0.95)), list[float]()
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = schedule(5).rate(step)
        numbers = torch.arange(step * BLOCKS_A_STEP, (step + 1) * BLOCKS_A_STEP) % len(TOKENS)
        batch = targets.batch(numbers)
        tokens, states = batch.tokens, batch.targets[0]
        wanted = (states @ targets.teacher.get_parameter("lm_head.weight").T).detach().softmax(-1)
        log_ratio = wanted.clamp(min=1e-30).log() - by_hand(input_ids=tokens).logits.log_softmax(-1)
        optimizer.zero_grad()
        (wanted * log_ratio).sum(-1).mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0).item())
        optimizer.step()
    assert max(norms) > 1.5, norms
    for name, value in weights(by_hand).items():
        torch.testing.assert_close(weights(student)[name], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_two_trainings_of_the_same_student_are_the_same(accelerators: Accelerators, precision: str) -> None:
    students = [tiny_student(), tiny_student()]
    for seed, student in enumerate(students):
        torch.manual_seed(seed)
        distil(student, Recorded(), schedule(), accelerators(precision))
    assert same_weights(*students)
    assert not same_weights(students[0], tiny_student())


def test_dropout_of_the_config_is_off(accelerator: Accelerator) -> None:
    students = [tiny_student(attention_dropout=0.5), tiny_student(attention_dropout=0.0)]
    for student in students:
        distil(student, Recorded(), schedule(), accelerator)
    assert same_weights(*students)


# Batches


def test_every_student_reads_the_same_blocks_in_the_same_order(accelerator: Accelerator) -> None:
    asked = []
    for student in (tiny_student(), tiny_student(seed=5, num_hidden_layers=1, intermediate_size=8)):
        targets = Recorded()
        distil(student, targets, schedule(), accelerator)
        asked.append(targets.asked)
    assert asked[0] == asked[1]


def test_after_the_last_block_comes_the_first(accelerator: Accelerator) -> None:
    targets = Recorded()
    outcome = distil(tiny_student(), targets, schedule(5), accelerator)
    assert targets.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]
    assert outcome.tokens == 5 * BLOCKS_A_STEP * BLOCK


def test_progress_and_validation_come_at_equal_distances(accelerator: Accelerator) -> None:
    told: list[int] = []
    watch = TrainingMonitor(validate=loss_of, times=4, advance=told.append)
    student = tiny_student()
    outcome = distil(student, Recorded(), schedule(10), accelerator, watch)
    step = BLOCKS_A_STEP * BLOCK
    assert told == [0, *[step] * 10]
    assert [tokens for tokens, _ in outcome.curve] == [3 * step, 5 * step, 8 * step, 10 * step]
    assert outcome.curve[-1][1] == loss_of(student)
    assert not student.training


@pytest.mark.parametrize(("times", "points"), [(0, []), (1, [2]), (2, [1, 2]), (5, [1, 2])])
def test_there_are_no_more_validations_than_steps(
    accelerator: Accelerator, times: int, points: list[int]
) -> None:
    watch = TrainingMonitor(validate=loss_of, times=times)
    outcome = distil(tiny_student(), Recorded(), schedule(2), accelerator, watch)
    assert [tokens for tokens, _ in outcome.curve] == [n * BLOCKS_A_STEP * BLOCK for n in points]


# Losses that are no numbers


def test_a_loss_that_is_no_number_ends_the_training(accelerator: Accelerator) -> None:
    student = tiny_student()
    with torch.no_grad():
        student.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = float("nan")
    before = weights(student)
    with pytest.raises(DivergenceError, match=r"^the loss is nan at step 1$"):
        distil(student, Recorded(), schedule(), accelerator)
    name = "model.embed_tokens.weight"
    assert torch.equal(weights(student)[name], before[name])


def test_a_gradient_that_is_no_number_ends_it_before_the_step(accelerator: Accelerator) -> None:
    student, calls = tiny_student(), count()

    def overflow(gradient: Tensor) -> Tensor:
        return gradient * (float("inf") if next(calls) == 2 else 1.0)

    student.get_parameter("model.norm.weight").register_hook(overflow)
    with pytest.raises(DivergenceError, match=r"^the norm of the gradient is (inf|nan) at step 3$"):
        distil(student, Recorded(), schedule(), accelerator)
    assert all(bool(value.isfinite().all()) for value in weights(student).values())


# What is left behind


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("weight", [1.0, float("nan")])
def test_a_student_dies_when_it_is_dropped(accelerators: Accelerators, precision: str, weight: float) -> None:
    """Also one that diverged."""
    accelerator, targets, dead = accelerators(precision), Recorded(), list[weakref.ref[PreTrainedModel]]()
    for seed in range(3):
        student = tiny_student(seed)
        nn.init.constant_(student.get_parameter("model.norm.weight"), weight)
        dead.append(weakref.ref(student))
        with nullcontext() if weight == 1 else pytest.raises(DivergenceError):
            distil(student, targets, schedule(2), accelerator, TrainingMonitor(validate=loss_of, times=1))
        del student
        gc.collect()
    assert [reference() for reference in dead] == [None] * 3
    assert accelerator._models == accelerator._optimizers == []


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_student_is_left_as_a_plain_model(
    accelerators: Accelerators, tmp_path: Path, precision: str
) -> None:
    student, accelerator = tiny_student(tie_word_embeddings=True), accelerators(precision)
    fresh, tokens = vars(tiny_student()).keys(), VALIDATION.long()
    distil(student, Recorded(), schedule(), accelerator)
    assert vars(student).keys() == fresh
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert not student.training
    assert student.config._attn_implementation == "sdpa"
    with torch.no_grad():
        logits = student(input_ids=tokens).logits
        copy = pickle.loads(pickle.dumps(student))
        student.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert logits.dtype == torch.float32
        assert torch.equal(copy(input_ids=tokens).logits, logits)
        assert torch.equal(loaded(input_ids=tokens).logits, logits)


def test_only_the_student_and_its_loss_run_in_mixed_precision(accelerators: Accelerators) -> None:
    targets, student, within, outside = Recorded(), tiny_student(), set[bool](), set[bool]()

    def validate(model: PreTrainedModel) -> float:
        outside.add(torch.is_autocast_enabled("cpu"))
        return 0.0

    def trained(*_: object) -> None:
        if torch.is_grad_enabled():
            within.add(torch.is_autocast_enabled("cpu"))

    hook = student.register_forward_hook(trained)
    norm = student.base_model.register_forward_hook(trained)
    distil(student, targets, schedule(2), accelerators("bf16"), TrainingMonitor(validate=validate, times=2))
    hook.remove()
    norm.remove()
    assert (targets.autocast, outside, within) == ({False}, {False}, {True})


def test_training_attends_plainly_and_validation_as_the_student_came(accelerators: Accelerators) -> None:
    targets, student, kinds = Recorded(), tiny_student(), list[str]()
    hook = student.base_model.register_forward_hook(
        lambda module, *_: kinds.append(str(module.config._attn_implementation))
    )
    distil(student, targets, schedule(2), accelerators("bf16"), TrainingMonitor(validate=loss_of, times=2))
    hook.remove()
    # Before each of the two halves a block is read with both, to see that they compute the same.
    assert [kind for kind, _ in groupby(kinds)] == ["sdpa", "eager", "sdpa", "eager", "sdpa"]
