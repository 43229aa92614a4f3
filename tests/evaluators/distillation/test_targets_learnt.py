"""Cached targets of some tokens alone: what lies on the disk, where it is put back, and what is reused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.states import StateKind, StatePlace
from evaluators.distillation.targets.batch import PADDING, Form, Sparse
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.live import Hidden, LiveTargets
from evaluators.distillation.targets.sparse import Sampled, TopK
from tests.evaluators.tiny_models import random_tokens, tiny_model

TOKENS = random_tokens(7, 40)
#: About a third; of block 2 nothing, of block 3 everything.
LEARNT = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(0)) < 0.33
LEARNT[2], LEARNT[3] = False, True
ALL = torch.arange(7)
TEACHER = tiny_model()
FORMS: dict[str, Callable[[PreTrainedModel], Form]] = {"hidden": Hidden, "sampled": Sampled, "top-k": TopK}
PLACES = [StatePlace(StateKind.BLOCK, 1)]

with_every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def cached(form: Form, folder: Path, learnt: Tensor | None, tokens: Tensor = TOKENS) -> CachedTargets:
    return CachedTargets(TEACHER, tokens, form, folder, "a teacher", learnt=learnt)


def filled(form: Form, folder: Path, learnt: Tensor | None) -> CachedTargets:
    targets = cached(form, folder, learnt)
    targets.fill()
    return targets


@pytest.mark.parametrize("form", [Hidden, TopK])
def test_what_is_learnt_is_put_back_at_its_places(
    form: Callable[[PreTrainedModel], Form], tmp_path: Path
) -> None:
    whole, some = filled(form(TEACHER), tmp_path / "whole", None), filled(form(TEACHER), tmp_path, LEARNT)
    for numbers in (ALL, torch.tensor([5, 2, 3]), torch.tensor([2])):
        learnt, parts = LEARNT[numbers], (some.batch(numbers).targets, whole.batch(numbers).targets)
        for found, wanted in zip(*parts, strict=True):
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            assert torch.equal(found[learnt], wanted[learnt])
            assert (found[~learnt] == 0).all()


def test_draws_are_made_where_something_is_learnt(tmp_path: Path) -> None:
    whole, some = (
        filled(Sampled(TEACHER), tmp_path / "whole", None),
        filled(Sampled(TEACHER), tmp_path, LEARNT),
    )
    said = some.predictions(*some.batch(ALL).targets)
    assert isinstance(said, Sparse)
    torch.testing.assert_close(said.weights.sum(-1), LEARNT.float())
    assert torch.equal(said.entropy, whole.batch(ALL).targets[2] * LEARNT)
    nothing = some.batch(torch.tensor([2]))
    assert [tuple(part.shape) for part in nothing.targets] == [(1, 40, 0), (1, 40, 0), (1, 40)]


def test_states_are_put_back_too(tmp_path: Path) -> None:
    some = CachedTargets(TEACHER, TOKENS, Hidden(TEACHER), tmp_path, "a teacher", PLACES, learnt=LEARNT)
    some.fill()
    found = some.batch(ALL).states["block-1"]
    wanted = LiveTargets(TEACHER, TOKENS, PLACES).batch(ALL).states["block-1"].bfloat16()
    assert torch.equal(found, wanted * LEARNT[..., None])


@with_every_form
def test_records_are_as_much_smaller_as_less_is_learnt(
    form: Callable[[PreTrainedModel], Form], tmp_path: Path
) -> None:
    """But for headers: 200 to 400 bytes a block."""
    sizes = [
        filled(form(TEACHER), tmp_path / name, learnt).records.size
        for name, learnt in (("none", torch.zeros_like(LEARNT)), ("some", LEARNT), ("all", None))
    ]
    share = (sizes[1] - sizes[0]) / (sizes[2] - sizes[0])
    assert sizes[0] < 7 * 400
    assert share == pytest.approx(float(LEARNT.float().mean()), rel=0.1)


@with_every_form
def test_records_of_another_mask_are_not_used(
    form: Callable[[PreTrainedModel], Form], tmp_path: Path
) -> None:
    filled(form(TEACHER), tmp_path, LEARNT)
    assert cached(form(TEACHER), tmp_path, LEARNT.clone()).missing() == []
    assert cached(form(TEACHER), tmp_path, LEARNT[:5], TOKENS[:5]).missing() == []
    other = LEARNT.clone()
    other[4, 7] = ~other[4, 7]
    assert cached(form(TEACHER), tmp_path, other).missing() == [4]
    assert cached(form(TEACHER), tmp_path, None).missing() == [0, 1, 2, 4, 5, 6], "of 3 all is learnt"


def test_a_mask_of_all_tokens_is_none(tmp_path: Path) -> None:
    filled(Hidden(TEACHER), tmp_path, None)
    assert cached(Hidden(TEACHER), tmp_path, torch.ones_like(LEARNT)).missing() == []


def test_a_mask_of_the_padding_is_told_apart(tmp_path: Path) -> None:
    """What is not learnt is told apart by a number that stands for no token and not for padding."""
    tokens, learnt = TOKENS[:2].clone(), LEARNT[:2].clone()
    tokens[1, 30:] = PADDING
    learnt[1, 30:] = False
    cached(Hidden(TEACHER), tmp_path, learnt, tokens).fill()
    for place in range(30, 40):
        other = learnt.clone()
        other[1, place] = True
        assert cached(Hidden(TEACHER), tmp_path, other, tokens).missing() == [1]


def test_a_record_that_was_lost_is_made_again_of_what_is_learnt(tmp_path: Path) -> None:
    targets = filled(Hidden(TEACHER), tmp_path, LEARNT)
    wanted, size = targets.batch(ALL).targets[0], (tmp_path / "records.bin").stat().st_size
    (tmp_path / "records.bin").write_bytes(bytes(size))
    assert torch.equal(targets.batch(ALL).targets[0], wanted)
    assert (tmp_path / "records.bin").stat().st_size == size
