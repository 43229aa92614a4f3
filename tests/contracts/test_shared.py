"""Students that share weights: slices are extracted students, before and after the weights were trained."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.cutting.shared_weights import SharedWeights
from space.verification.behaviour import with_stream
from space.verification.contract import (
    contract_tokens,
    one_expert_at_a_time,
    random_architecture,
    random_ranking,
)
from space.verification.verification import Verified
from tests.contracts.test_turned import CENTRED, TURNABLE, turn
from tests.contracts.tiny import CASES, each, logits_of, tokens, verified

every_case = pytest.mark.parametrize("case", each(*CASES))
DRAWS = 3


def shared_of(found: Verified, ranking: Ranking) -> SharedWeights:
    canonical = sort_by_importance(saved_tensors(found.model, found.small), found.small, ranking)
    return SharedWeights(canonical, found.small, ranking, dtype=found.model.dtype)


def drawn(axis_map: AxisMap, seed: int) -> Architecture:
    """Of a student that is smaller along any of its axes."""
    found = random_architecture(axis_map, axis_map.free, random.Random(seed))
    assert found is not None
    return found[0]


def same_weights(student: PreTrainedModel, alone: PreTrainedModel) -> None:
    """Each tensor of the two is equal, to the bit."""
    ours, theirs = student.state_dict(), alone.state_dict()
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert torch.equal(ours[name], values), name


def slice_is_extracted(shared: SharedWeights, architecture: Architecture) -> None:
    """A slice has the weights of the student that is cut from the shared tensors, and its logits."""
    canonical = {name: values.detach() for name, values in shared.tensors().items()}
    alone = extract(canonical, shared.axis_map, shared.ranking, architecture)
    one_expert_at_a_time(alone)
    with torch.no_grad(), shared.as_student(architecture) as student:
        one_expert_at_a_time(student)
        same_weights(student, alone)
        # A product of views may be summed in another order than that of their copies.
        torch.testing.assert_close(logits_of(student), logits_of(alone), rtol=1e-5, atol=1e-5)


def loss_of(student: PreTrainedModel) -> Tensor:
    one_expert_at_a_time(student)
    logits: Tensor = student(input_ids=tokens(), use_cache=False).logits
    return logits.float().log_softmax(-1)[..., 3].mean()


def train(shared: SharedWeights, axis_map: AxisMap) -> None:
    """A step of gradient descent for some students; its length makes it show."""
    for seed in range(DRAWS):
        shared.zero_grad()
        with shared.as_student(drawn(axis_map, seed)) as student:
            loss_of(student).backward()
        with torch.no_grad():
            for parameter in shared.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad / parameter.grad.abs().max().clamp_min(1e-9))


@every_case
def test_a_slice_is_the_extracted_student(case: str) -> None:
    found = verified(case)
    ranking = random_ranking(found.small, 5)
    shared = shared_of(found, ranking)
    for trained in (False, True):
        if trained:
            train(shared, found.small)
        for seed in range(DRAWS):
            slice_is_extracted(shared, drawn(found.small, seed))


@every_case
def test_gradients_are_those_of_the_student_alone(case: str) -> None:
    found = verified(case)
    ranking = random_ranking(found.small, 6)
    shared, architecture = shared_of(found, ranking), drawn(found.small, 9)
    alone = shared.extract(architecture)
    loss_of(alone).backward()
    wanted = {name: one.grad for name, one in alone.named_parameters() if one.grad is not None}
    with shared.as_student(architecture) as student:
        loss_of(student).backward()
    slices = shared.slices(architecture)
    names = [name for name in wanted if name in slices]
    assert names
    own = [one for one in shared.parameters() if one.grad is not None]
    expected = torch.autograd.grad([slices[name] for name in names], own, [wanted[name] for name in names])
    for one, gradient in zip(own, expected, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, gradient, rtol=1e-4, atol=1e-6)


@every_case
def test_entries_that_a_student_lacks_are_left_alone(case: str) -> None:
    found = verified(case)
    shared = shared_of(found, random_ranking(found.small, 7))
    architecture = drawn(found.small, 4)
    covered = sum(one.numel() for one in shared.extract(architecture).parameters())
    with shared.as_student(architecture) as student:
        sum(one.square().sum() for one in student.parameters()).backward()  # type: ignore[union-attr]
    touched = sum(int((one.grad != 0).sum()) for one in shared.parameters() if one.grad is not None)
    assert 0 < touched <= covered < sum(one.numel() for one in shared.parameters())


@pytest.mark.parametrize("model_type", each(*TURNABLE, *CENTRED, also_slow=("qwen3", "phi3", "gpt_neox")))
def test_a_turned_slice_is_the_extracted_student(model_type: str) -> None:
    found, ranking = turn(model_type, 2)
    stream = turned_map(found)
    shared = shared_of(replace(found, small=stream), ranking)
    for trained in (False, True):
        if trained:
            train(shared, stream)
        architecture = drawn(stream, 8)
        alone = shared.extract(architecture)
        one_expert_at_a_time(alone)
        with torch.no_grad(), shared.as_student(architecture) as student:
            one_expert_at_a_time(student)
            same_weights(student, alone)
            torch.testing.assert_close(logits_of(student), logits_of(alone), rtol=1e-5, atol=1e-5)


def turned_map(found: Verified) -> AxisMap:
    """The map with the stream that is turned."""
    read = contract_tokens(found.model.config.vocab_size)
    return with_stream(found.small, found.small, found.model, read)


def test_what_training_changes_is_in_the_students() -> None:
    """The comparisons above can fail: a student made before the training is another one."""
    found = verified("llama-tied-biases")
    shared = shared_of(found, random_ranking(found.small, 5))
    architecture = drawn(found.small, 1)
    before = logits_of(shared.extract(architecture))
    train(shared, found.small)
    assert not torch.equal(before, logits_of(shared.extract(architecture)))
