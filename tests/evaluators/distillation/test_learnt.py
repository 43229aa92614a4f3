"""Learning some tokens alone: what is not learnt has no part in any loss, its gradient or its average."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.loop import distil
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.processes import Gradient
from evaluators.distillation.states import States, StatesLoss, late_block
from evaluators.distillation.targets.batch import PADDING, Batch, Count, Form, Targets
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.live import Hidden, LiveTargets, TextTargets
from evaluators.distillation.targets.sparse import Sampled, TopK
from evaluators.huggingface.final_states import final_states, logits_of
from tests.evaluators.distillation.training import schedule
from tests.evaluators.tiny_models import random_tokens, tiny_model, tiny_student

TOKENS = random_tokens(4, 6)
#: Several answers in a block, over its end, in none of it, and in all of it.
LEARNT = torch.tensor(
    [[0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool
)
NOTHING, ALL = torch.zeros_like(LEARNT), torch.ones_like(LEARNT)
EVERY = torch.arange(4)
OF_LOGITS = ["forward-kl", "reverse-kl", "jensen-shannon", "mse", "cosine", "0.3*forward-kl+cross-entropy"]
SOURCES = [
    *(("live", loss) for loss in OF_LOGITS),
    *(("hidden", loss) for loss in OF_LOGITS),
    *((form, loss) for form in ("sampled", "top-k") for loss in ("forward-kl", "forward-kl+cross-entropy")),
    ("text", "cross-entropy"),
]
FORMS: dict[str, Callable[[PreTrainedModel], Form]] = {"hidden": Hidden, "sampled": Sampled, "top-k": TopK}

with_every_source = pytest.mark.parametrize(
    ("source", "loss"), SOURCES, ids=[" ".join(one) for one in SOURCES]
)


def targets_of(source: str, folder: Path, learnt: Tensor | None = LEARNT) -> Targets:
    teacher = tiny_model(seed=3)
    if source == "text":
        return TextTargets(TOKENS, torch.device("cpu"), learnt)
    if source == "live":
        return LiveTargets(teacher, TOKENS, learnt=learnt)
    kept = CachedTargets(teacher, TOKENS, FORMS[source](teacher), folder, "a teacher", learnt=learnt)
    kept.fill()
    return kept


def loss_and_gradient(targets: Targets, loss: str) -> tuple[Tensor, Tensor]:
    """The loss of all blocks, and its gradient (B, T, d) by the states from which each logit comes."""
    student, batch = tiny_student(), targets.batch(EVERY)
    with torch.no_grad():
        final = final_states(student, batch.tokens)
    final.requires_grad_(True)
    distillation = Distillation(student, targets, Loss.parse(loss))
    value = distillation.on_logits(final, batch, Count.of(TOKENS, targets.learnt))
    (gradient,) = torch.autograd.grad(value, final)
    return value.detach(), gradient


@with_every_source
def test_the_gradient_is_zero_at_what_is_not_learnt_and_nowhere_else(
    source: str, loss: str, tmp_path: Path
) -> None:
    value, gradient = loss_and_gradient(targets_of(source, tmp_path), loss)
    learnt = LEARNT.clone()
    if source == "text":
        learnt[:, -1] = False  # the text after a block is not known
    assert torch.isfinite(value)
    assert (gradient[~learnt] == 0).all()
    assert (gradient[learnt].abs().amax(-1) > 0).all()


@with_every_source
def test_the_loss_is_the_mean_over_what_is_learnt(source: str, loss: str, tmp_path: Path) -> None:
    """Summed up token by token, of logits that are made whole."""
    targets, student, parsed = targets_of(source, tmp_path), tiny_student(), Loss.parse(loss)
    batch, nexts = targets.batch(EVERY), TOKENS.long().roll(-1, 1)
    nexts[:, -1] = PADDING
    of_teacher, of_text = list[float](), list[float]()
    with torch.no_grad():
        logits = logits_of(student, final_states(student, batch.tokens))
        for row, place in LEARNT.nonzero().tolist():
            said = targets.predictions(*(part[row, place][None] for part in batch.targets))
            one, other = parsed.of(logits[row, place][None], said, nexts[row, place][None])
            of_teacher.append(float(one))
            if place < 5:
                of_text.append(float(other))
    assert (len(of_teacher), len(of_text)) == (12, 10)
    wanted = sum(of_teacher) / 12 + sum(of_text) / 10
    assert float(loss_and_gradient(targets, loss)[0]) == pytest.approx(wanted, rel=1e-5)


@with_every_source
def test_where_nothing_is_learnt_loss_and_gradient_are_zero(source: str, loss: str, tmp_path: Path) -> None:
    value, gradient = loss_and_gradient(targets_of(source, tmp_path, NOTHING), loss)
    assert value == 0
    assert (gradient == 0).all()


@with_every_source
def test_a_mask_of_all_tokens_gives_the_same_as_none(source: str, loss: str, tmp_path: Path) -> None:
    whole = loss_and_gradient(targets_of(source, tmp_path, ALL), loss)
    plain = loss_and_gradient(targets_of(source, tmp_path / "plain", None), loss)
    assert torch.equal(whole[0], plain[0])
    assert torch.equal(whole[1], plain[1])


def test_masks_count_and_end_with_the_block() -> None:
    tokens = torch.tensor([[0, 5, 6, 0, 7, 8], [1, 2, 3, PADDING, PADDING, PADDING]])
    learnt = torch.tensor([[False, True, True, False, False, True], [True, False, True, True, True, True]])
    batch, none = Batch(tokens, learnt=learnt), PADDING
    assert batch.mask.tolist() == [
        [False, True, True, False, False, True],
        [True, False, True, False, False, False],
    ]
    assert batch.next_tokens.tolist() == [[none, 6, 0, none, none, none], [2, none, none, none, none, none]]
    assert Count.of(tokens, learnt) == Count(5, 3)
    assert Count.of(tokens, torch.zeros_like(learnt)) == Count(0, 0)
    assert Count.of(tokens, torch.ones_like(learnt)) == Count.of(tokens) == Count(9, 7)


# Intermediate states, steps and trainings


def with_states(learnt: Tensor | None) -> tuple[Distillation, LiveTargets]:
    states = States((late_block(2, 3),))
    torch.manual_seed(0)
    targets = LiveTargets(tiny_model(seed=3), TOKENS, states.of_teacher, learnt=learnt)
    loss = Loss.parse("forward-kl+0.5*cross-entropy")
    return Distillation(tiny_student(), targets, loss, StatesLoss(states, 8, 16)), targets


def test_states_are_compared_where_something_is_learnt() -> None:
    distillation, targets = with_states(LEARNT)
    assert distillation.states is not None
    batch = targets.batch(EVERY)
    student = {"block-0": torch.randn(4, 6, 8, requires_grad=True)}
    value = distillation.states(student, batch.states, batch.mask)
    (gradient,) = torch.autograd.grad(value, student["block-0"])
    assert (gradient[~LEARNT] == 0).all()
    assert (gradient[LEARNT].abs().amax(-1) > 0).all()


def gradients_of_a_step(learnt: Tensor | None, micro: int, accelerator: Accelerator) -> list[Tensor]:
    """Loss and loss on states, then the gradient of each parameter, summed over micro-batches."""
    distillation, targets = with_states(learnt)
    step = Gradient(distillation, distillation, targets, schedule(1), accelerator)
    totals = step.compute(0, micro)
    return [totals, *(one.grad for one in distillation.parameters() if one.grad is not None)]


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_a_step_does_not_depend_on_its_micro_batches(micro: int, accelerator: Accelerator) -> None:
    """Although one of its blocks has nothing to learn, and the others differ in how much they have."""
    whole = gradients_of_a_step(LEARNT, 4, accelerator)
    for one, other in zip(gradients_of_a_step(LEARNT, micro, accelerator), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_step_of_all_tokens_is_the_one_without_a_mask(accelerator: Accelerator) -> None:
    masked, plain = (gradients_of_a_step(learnt, 2, accelerator) for learnt in (ALL, None))
    assert len(masked) == len(plain)
    assert all(map(torch.equal, masked, plain))


def test_a_step_without_anything_to_learn_has_no_gradient(accelerator: Accelerator) -> None:
    found = gradients_of_a_step(NOTHING, 2, accelerator)
    assert len(found) == 1 + len(list(with_states(NOTHING)[0].parameters()))
    assert all((one == 0).all() for one in found)


def test_a_training_goes_through_steps_without_anything_to_learn(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of its two steps has none; the weight of the states does not fall to zero with it."""
    weights, forward = list[float](), Distillation.forward

    def watched(distillation: Distillation, batch: Batch, count: Count) -> tuple[Tensor, Tensor]:
        weights.append(float(distillation.alpha))
        return forward(distillation, batch, count)

    monkeypatch.setattr(Distillation, "forward", watched)
    states, student = States((late_block(2, 3),)), tiny_student()
    tokens, learnt = torch.cat([TOKENS, TOKENS]), torch.cat([NOTHING, LEARNT])
    targets = LiveTargets(tiny_model(seed=3), tokens, states.of_teacher, learnt=learnt)
    distil(student, targets, schedule(2), accelerator, states=states)
    assert all(torch.isfinite(one).all() for one in student.parameters())
    assert weights == [1.0, 1.0, 1.0], "before the first step, and in both"
