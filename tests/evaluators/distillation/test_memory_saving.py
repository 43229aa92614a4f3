"""Blocks that are recomputed give the same losses and gradients."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from evaluators.distillation import loop
from evaluators.distillation.efficiency import (
    activation_checkpointing,
    first_micro_batch,
    smaller_micro_batches,
)
from evaluators.distillation.loop import distil
from evaluators.distillation.losses import Loss
from evaluators.distillation.module import Distillation
from evaluators.distillation.states import StatesLoss, layers_of
from evaluators.distillation.targets.batch import Batch, Count
from space.input_error import InputError
from tests.evaluators.distillation.training import Recorded, schedule
from tests.evaluators.distillation.whole_training import OUT_OF_MEMORY, STATES, Small, plan, train
from tests.evaluators.tiny_models import same_weights, tiny_student, weights
from tests.evaluators.tiny_types import TYPES, model_of


@pytest.mark.parametrize(
    ("device", "states", "micro"),
    [
        ("cpu", 6 * 512, 1),  # 20 million parameters: 512 tokens of a block, 682 would be allowed
        ("cpu", 8 * 128, 4),
        ("cpu", 64, 8),
        ("cpu", 2**30, 1),
        ("cuda", 2**30, 8),
    ],
)
def test_a_host_begins_with_few_states_and_a_gpu_with_all_blocks(
    device: str, states: int, micro: int
) -> None:
    assert first_micro_batch(8, 512, states, torch.device(device)) == micro


class Stored:
    """Bytes that a forward pass keeps for the backward pass."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> Stored:
        def pack(tensor: Tensor) -> Tensor:
            self.bytes += tensor.nbytes
            return tensor

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.__exit__(*_)


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_the_same(precision: torch.dtype, states: bool) -> None:
    targets, student = Small(states=states), tiny_student()
    compared = StatesLoss(STATES, 8, 16) if states else None
    distillation = Distillation(student, targets, Loss(), compared)
    batch = targets.batch(torch.arange(4))

    def step() -> tuple[float, list[Tensor], int]:
        distillation.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16), Stored() as stored:
            loss, _ = distillation(batch, Count.of(batch.tokens))
        loss.backward()
        return (
            loss.item(),
            [p.grad.clone() for p in distillation.parameters() if p.grad is not None],
            stored.bytes,
        )

    loss, gradients, memory = step()
    with activation_checkpointing(layers_of(student)):
        same, others, less = step()
    assert same == loss
    assert len(others) == len(gradients) == len(list(distillation.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert less < memory
    assert step()[2] == memory, "nothing is left of it"


@pytest.mark.parametrize("model_type", TYPES)
def test_every_class_is_recomputed_to_the_same_gradients(model_type: str) -> None:
    model = model_of(model_type)
    tokens = torch.arange(12).view(2, 6)

    def gradients() -> list[Tensor | None]:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))

    wanted = gradients()
    try:
        layers = layers_of(model)
    except InputError as error:
        pytest.skip(str(error))
    with activation_checkpointing(layers):
        found = gradients()
    for one, other in zip(wanted, found, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_where_one_block_does_not_fit_it_is_recomputed(accelerator: Accelerator) -> None:
    """And larger micro-batches are tried again; two blocks fit then."""
    student, roomy = tiny_student(), tiny_student()
    layer, came_with = layers_of(student)[0], vars(layers_of(student)[0]).copy()

    class Cramped(Recorded):
        def batch(self, numbers: Tensor) -> Batch:
            if len(numbers) > (2 if "forward" in vars(layer) else 0):
                raise torch.OutOfMemoryError(OUT_OF_MEMORY)
            return super().batch(numbers)

    targets = Cramped()
    distil(student, targets, schedule(), accelerator)
    distil(roomy, Recorded(), schedule(), accelerator)
    assert {len(numbers) for numbers in targets.asked} == {2}
    assert vars(layer).keys() == came_with.keys(), "everything is taken off"
    others = weights(roomy)
    for name, value in weights(student).items():
        torch.testing.assert_close(value, others[name], rtol=1e-3, atol=1e-4)


def test_recomputation_alone_changes_no_bit_of_a_training(accelerator: Accelerator) -> None:
    student, plain = tiny_student(), tiny_student()
    with activation_checkpointing(layers_of(student)):
        train(student, accelerator, plan(8), most=2, states=True)
    train(plain, accelerator, plan(8), most=2, states=True)
    assert same_weights(student, plain)


def test_a_class_without_a_list_of_blocks_fails_as_before(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(student: nn.Module) -> None:
        raise InputError("rule", "values", "remedy")

    monkeypatch.setattr(loop, "layers_of", refuse)
    with pytest.raises(torch.OutOfMemoryError, match=r"^out of memory with a micro-batch of one block$"):
        train(tiny_student(), accelerator, plan(8), most=0)


def test_the_order_in_which_memory_is_saved() -> None:
    tried = list[object]()

    def save_memory() -> bool:
        tried.append("recompute")
        return True

    def try_all() -> None:
        for micro in smaller_micro_batches(6, save_memory):
            tried.append(micro)

    with pytest.raises(torch.OutOfMemoryError, match=r"^out of memory with a micro-batch of one block$"):
        try_all()
    assert tried == [3, 1, "recompute", 6, 3, 1]
