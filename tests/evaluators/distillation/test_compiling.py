"""Compiled blocks: when, and that a student is the same within and after."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from evaluators.distillation import training
from evaluators.distillation.efficiency import (
    activation_checkpointing,
    compiled_blocks,
    compiling_pays,
    reset_compiled,
)
from evaluators.distillation.states import layers_of
from tests.evaluators.distillation.whole_training import plan, train
from tests.evaluators.tiny_models import random_tokens, tiny_model, tiny_student, weights

#: The compiler looks at attributes of which PyTorch warns, and ignores the warnings, but not errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")

TOKENS = random_tokens(3, 12).long()


@pytest.mark.parametrize(
    ("device", "tokens", "parameters", "pays"),
    [
        ("cpu", 10**12, 10**10, False),
        ("cuda", 10**6, 10**6, False),
        ("cuda", 10**7, 4 * 10**9, True),  # 2.4e17
        ("cuda", 10**6, 4 * 10**9, False),
        ("cuda", 10**9, 3 * 10**7, False),  # 1.8e17
        ("cuda", 10**9, 4 * 10**7, True),
    ],
)
def test_when_compilation_is_repaid(device: str, tokens: int, parameters: int, pays: bool) -> None:
    assert compiling_pays(torch.device(device), tokens, parameters) == pays


class Counting:
    """A compiler that runs what it is given, and counts how often it is asked."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def test_a_block_is_compiled_once_for_all_and_taken_off_after() -> None:
    student, compiler = tiny_model(), Counting()
    blocks = layers_of(student)
    before = [vars(block).copy() for block in blocks]
    wanted = gradients(student)
    try:
        for _ in range(2):  # two stretches with a validation between them
            with compiled_blocks(blocks, backend=compiler):
                found = gradients(student)
            again = compiler.graphs
        assert again == 1, "the blocks are alike, and so are the stretches"
    finally:
        reset_compiled()
    assert [vars(block).keys() for block in blocks] == [old.keys() for old in before]
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def gradients(model: torch.nn.Module) -> tuple[Tensor, ...]:
    loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
    return torch.autograd.grad(loss, list(model.parameters()))


def test_what_cannot_be_compiled_runs_as_it_is() -> None:
    student = tiny_model()
    wanted = gradients(student)

    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    try:
        with compiled_blocks(layers_of(student), backend=broken):
            found = gradients(student)
    finally:
        reset_compiled()
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))


@pytest.mark.parametrize("recomputing", [False, True])
def test_a_training_of_compiled_blocks_is_the_same(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, recomputing: bool
) -> None:
    """Recomputed blocks are compiled with what recomputes them."""
    compiler, student, plain = Counting(), tiny_student(), tiny_student()
    monkeypatch.setattr(training, "compiling_pays", lambda *_: True)
    monkeypatch.setattr(training, "compiled_blocks", lambda blocks: compiled_blocks(blocks, backend=compiler))
    with activation_checkpointing(layers_of(student)) if recomputing else nullcontext():
        train(student, accelerator, plan(6))
    assert compiler.graphs
    assert not any("forward" in vars(block) for block in layers_of(student))
    monkeypatch.undo()
    train(plain, accelerator, plan(6))
    others = weights(plain)
    for name, value in weights(student).items():
        torch.testing.assert_close(value, others[name], rtol=1e-3, atol=1e-4)


def test_nothing_is_compiled_where_attention_is_listened_to(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(blocks: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(training, "compiling_pays", lambda *_: True)
    monkeypatch.setattr(training, "compiled_blocks", refuse)
    train(tiny_student(), accelerator, plan(6), states=True)
