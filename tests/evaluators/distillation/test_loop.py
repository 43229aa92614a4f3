from __future__ import annotations

import gc
import json
import pickle
import weakref
from contextlib import nullcontext
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluators.distillation import loop
from evaluators.distillation.loop import Checkpointing, DivergenceError, Watch, distil
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets import LiveTargets
from evaluators.loss import validation_loss
from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.tiny_models import random_tokens, same_weights, tiny_model, tiny_student, weights

BLOCK, BLOCKS_A_STEP, STEPS = 6, 4, 8
TOKENS = random_tokens(10, BLOCK)
VALIDATION = random_tokens(3, BLOCK, seed=1)


class Recorded(LiveTargets):
    """Targets that remember which blocks were asked for, and whether autocast was on."""

    def __init__(self, tokens: Tensor = TOKENS) -> None:
        super().__init__(tiny_model(seed=3), tokens)
        self.asked: list[list[int]] = []
        self.autocast: set[bool] = set()

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(numbers.tolist())
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        return super().batch(numbers)


def schedule(steps: int = STEPS, blocks: int = BLOCKS_A_STEP, peak_rate: float = 0.01) -> Schedule:
    return Schedule(tokens=steps * blocks * BLOCK, blocks=blocks, block=BLOCK, peak_rate=peak_rate)


def loss_of(model: PreTrainedModel) -> float:
    return validation_loss(model, VALIDATION)


# What it learns


def test_the_loss_falls_to_almost_nothing_on_a_text_that_repeats(accelerator: Accelerator) -> None:
    tokens = random_tokens(1, BLOCK).repeat(4, 1)
    targets, student = Recorded(tokens), tiny_student()
    before = divergence(student, targets)
    distil(student, targets, schedule(150, peak_rate=0.02), accelerator)
    assert divergence(student, targets) < 0.02 * before


def divergence(student: PreTrainedModel, targets: LiveTargets) -> float:
    with torch.no_grad():
        return float(loop.Distillation(student, targets.head)(*targets.batch(torch.arange(4))))


def test_the_teacher_learns_nothing(accelerator: Accelerator) -> None:
    targets = Recorded()
    before = weights(targets.teacher)
    distil(tiny_student(), targets, schedule(), accelerator)
    assert all(torch.equal(value, before[name]) for name, value in weights(targets.teacher).items())


def test_one_step_is_adamw_on_the_clipped_gradient_of_the_mean(accelerator: Accelerator) -> None:
    """Against the same step written with PyTorch alone."""
    targets, student, by_hand = Recorded(), tiny_student(), tiny_student()
    distil(student, targets, schedule(1), accelerator)
    matrices = [p for p in by_hand.parameters() if p.ndim == 2]
    vectors = [p for p in by_hand.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    tokens, states = targets.batch(torch.arange(BLOCKS_A_STEP))
    wanted = (states @ targets.head.T).softmax(-1)
    log_ratio = wanted.log() - by_hand(input_ids=tokens).logits.log_softmax(-1)
    (wanted * log_ratio).sum(-1).mean().backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    optimizer.step()
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
    watch = Watch(validate=loss_of, times=4, advance=told.append)
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
    watch = Watch(validate=loss_of, times=times)
    outcome = distil(tiny_student(), Recorded(), schedule(2), accelerator, watch)
    assert [tokens for tokens, _ in outcome.curve] == [n * BLOCKS_A_STEP * BLOCK for n in points]


# Stopping and going on


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("stop", [1, 2, 5, STEPS])
def test_stopped_and_started_again_it_ends_in_the_same_weights(
    accelerators: Accelerators, tmp_path: Path, stop: int, precision: str
) -> None:
    accelerator, undisturbed = accelerators(precision), tiny_student()
    wanted = distil(undisturbed, Recorded(), schedule(), accelerator, Watch(validate=loss_of, times=4))

    saving = Checkpointing(path=tmp_path / "student.safetensors", key="a training", seconds=0)
    calls = count()

    def interrupt(tokens: int) -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt

    watch = Watch(validate=loss_of, times=4, advance=interrupt)
    with pytest.raises(KeyboardInterrupt):
        distil(tiny_student(), Recorded(), schedule(), accelerator, watch, saving)

    told: list[int] = []
    student, targets = tiny_student(), Recorded()
    watch = Watch(validate=loss_of, times=4, advance=told.append)
    outcome = distil(student, targets, schedule(), accelerator, watch, saving)
    assert same_weights(student, undisturbed)
    assert (outcome.tokens, outcome.curve) == (wanted.tokens, wanted.curve)
    assert told[0] == (stop - 1) * BLOCKS_A_STEP * BLOCK
    assert sum(told) == outcome.tokens
    assert len(targets.asked) == STEPS - (stop - 1)


def test_stopped_while_it_validates_it_validates_again(accelerator: Accelerator, tmp_path: Path) -> None:
    undisturbed = tiny_student()
    wanted = distil(undisturbed, Recorded(), schedule(), accelerator, Watch(validate=loss_of, times=4))
    saving = Checkpointing(path=tmp_path / "student.safetensors", key="a training", seconds=0)
    calls = count()

    def validate(model: PreTrainedModel) -> float:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return loss_of(model)

    watch, student = Watch(validate=validate, times=4), tiny_student()
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
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    saving = Checkpointing(path=tmp_path / "student.safetensors", key="a training", seconds=0)
    outcome = distil(tiny_student(), Recorded(), schedule(), accelerator, checkpointing=saving)
    end = next(ticks)
    assert outcome.seconds == end - 1
    with safe_open(saving.path, "pt") as file:
        saved = json.loads(file.metadata()["slimsearch"])["seconds"]
    assert 0 < saved < outcome.seconds
    again = distil(tiny_student(), Recorded(), schedule(), accelerator, checkpointing=saving)
    assert again.seconds == saved + (next(ticks) - 1) - (end + 1)


# Memory

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Cramped(Recorded):
    """Targets that run out of memory when more than ``most`` blocks are asked for."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        if len(numbers) > self.most:
            raise RuntimeError(OUT_OF_MEMORY)
        return super().batch(numbers)


def assert_close_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    others = weights(other)
    for name, value in weights(one).items():
        torch.testing.assert_close(value, others[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("most", "micro"), [(4, 4), (3, 2), (2, 2), (1, 1)])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    accelerator: Accelerator, most: int, micro: int
) -> None:
    student, roomy, told = tiny_student(), tiny_student(), list[int]()
    cramped, whole = Cramped(most), Recorded()
    watch = Watch(validate=loss_of, times=4, advance=told.append)
    outcome = distil(student, cramped, schedule(), accelerator, watch)
    wanted = distil(roomy, whole, schedule(), accelerator, Watch(validate=loss_of, times=4))
    assert {len(numbers) for numbers in cramped.asked} == {micro}
    assert list(chain(*cramped.asked)) == list(chain(*whole.asked))
    assert sum(told) == outcome.tokens
    assert [point[0] for point in outcome.curve] == [point[0] for point in wanted.curve]
    assert_close_weights(student, roomy)


def test_a_step_that_ran_out_of_memory_half_way_is_taken_once(accelerator: Accelerator) -> None:
    """Its first micro-batches had left gradients behind."""
    calls = count()

    class Sudden(Cramped):
        def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
            if next(calls) == 1 + 2 * 2 + 1:  # the second micro-batch of the third step
                raise torch.OutOfMemoryError(OUT_OF_MEMORY)
            return super().batch(numbers)

    student, roomy, targets = tiny_student(), tiny_student(), Sudden(2)
    distil(student, targets, schedule(), accelerator)
    distil(roomy, Recorded(), schedule(), accelerator)
    assert targets.asked[4:10] == [[8, 9], [8], [9], [0], [1], [2]]
    assert_close_weights(student, roomy)


def test_a_validation_that_ran_out_of_memory_is_taken_again(accelerator: Accelerator) -> None:
    calls = count()

    def validate(model: PreTrainedModel) -> float:
        if next(calls) == 3:  # the last one
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return loss_of(model)

    student, roomy = tiny_student(), tiny_student()
    outcome = distil(student, Recorded(), schedule(), accelerator, Watch(validate=validate, times=4))
    wanted = distil(roomy, Recorded(), schedule(), accelerator, Watch(validate=loss_of, times=4))
    assert outcome.curve == wanted.curve
    assert same_weights(student, roomy)


def test_where_not_even_one_block_fits_that_is_the_reason(accelerator: Accelerator) -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"^out of memory with a micro-batch of one block$"):
        distil(tiny_student(), Cramped(0), schedule(), accelerator)


def test_other_errors_are_passed_on_at_once(accelerator: Accelerator) -> None:
    calls = count()

    class Broken(Recorded):
        def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
            next(calls)
            raise RuntimeError("the disk was pulled out")

    with pytest.raises(RuntimeError, match=r"^the disk was pulled out$"):
        distil(tiny_student(), Broken(), schedule(), accelerator)
    assert next(calls) == 1


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
            distil(student, targets, schedule(2), accelerator, Watch(validate=loss_of, times=1))
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

    hook = student.register_forward_hook(lambda *_: within.add(torch.is_autocast_enabled("cpu")))
    norm = student.base_model.register_forward_hook(lambda *_: within.add(torch.is_autocast_enabled("cpu")))
    distil(student, targets, schedule(2), accelerators("bf16"), Watch(validate=validate, times=2))
    hook.remove()
    norm.remove()
    assert (targets.autocast, outside, within) == ({False}, {False}, {True})


def test_training_attends_plainly_and_validation_as_the_student_came(accelerators: Accelerators) -> None:
    targets, student, kinds = Recorded(), tiny_student(), list[str]()
    hook = student.base_model.register_forward_hook(
        lambda module, *_: kinds.append(str(module.config._attn_implementation))
    )
    distil(student, targets, schedule(2), accelerators("bf16"), Watch(validate=loss_of, times=2))
    hook.remove()
    assert kinds == ["eager", "sdpa", "eager", "sdpa"]
