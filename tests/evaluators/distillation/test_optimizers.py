"""AdamW in 8 bits is torchao's, bit by bit; memory is as foretold; what is small keeps float32."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evaluators.distillation import optimizers
from evaluators.distillation.optimizers import (
    AdamW8bit,
    OptimizerName,
    bytes_per_parameter,
    convert_weights,
    make_optimizer,
    state_bytes,
    training_bytes,
    workspace_bytes,
)
from tests.evaluators.tiny_models import tiny_student

EIGHT = OptimizerName.ADAMW_8BIT
MATRIX = (64, 80)
#: Of 100 × 53 = 5300 values the last 180 fill no block.
ODD = (100, 53)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def module_of(*tensors: Tensor) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in tensors])


def take_steps(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], first: int, last: int
) -> None:
    """Steps by gradients of every size, and rates that change."""
    for step in range(first, last):
        for number, parameter in enumerate(parameters):
            gradient = random(*parameter.shape, seed=100 * step + number).exp() - 1
            parameter.grad = gradient.to(parameter.dtype)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        optimizer.step()


@pytest.mark.parametrize("size", [256, 1024, 2**18], ids=lambda size: f"slices of {size}")
def test_its_steps_are_those_of_torchao_bit_by_bit(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_SLICE_CPU", size)
    from torchao.optim import AdamW8bit as Theirs

    ours, theirs = (nn.Parameter(random(*MATRIX).bfloat16()) for _ in range(2))
    mine = AdamW8bit([{"params": [ours], "weight_decay": 0.01}], 0.1)
    other = Theirs([theirs], lr=0.1, betas=(0.9, 0.95), weight_decay=0.01, bf16_stochastic_round=True)
    take_steps(mine, [ours], 0, 5)
    for step in range(5):
        theirs.grad = (random(*MATRIX, seed=100 * step).exp() - 1).bfloat16()
        other.param_groups[0]["lr"].fill_(0.01 / (step + 1))
        torch.manual_seed(step + 1)
        with torch.compiler.set_stance("force_eager"):
            other.step()
    assert torch.equal(ours, theirs)
    for codes, moment in zip(mine.state[ours]["codes"], ("exp_avg", "exp_avg_sq"), strict=True):
        assert torch.equal(codes.view(MATRIX), other.state[theirs][moment].codes)


def test_what_is_small_is_trained_in_float32() -> None:
    """Norms, small matrices, and what fills no block of a large one: as AdamW does on the same gradients."""
    start = [random(64) + 1, random(8, 8), random(*ODD)]
    ours = module_of(*(tensor.bfloat16() for tensor in start))
    exact = module_of(*(tensor.bfloat16().float() for tensor in start))
    mine, other = make_optimizer(ours, EIGHT, 0.1), torch.optim.AdamW(exact, lr=0.1, betas=(0.9, 0.95))
    other.param_groups[0]["weight_decay"] = 0.0
    for group in mine.param_groups:
        group["weight_decay"] = 0.0
    take_steps(mine, list(ours), 0, 5)
    for step in range(5):
        for number, parameter in enumerate(exact):
            parameter.grad = (random(*parameter.shape, seed=100 * step + number).exp() - 1).bfloat16().float()
        other.param_groups[0]["lr"] = 0.01 / (step + 1)
        other.step()
    for found, wanted in zip(ours, exact, strict=True):
        small = slice(-180, None)
        copy = mine.state[found]["rest"][0]
        torch.testing.assert_close(copy, wanted.detach().view(-1)[-len(copy) :])
        assert torch.equal(found.view(-1)[small], copy.bfloat16()[small])


def test_updates_below_the_spacing_of_bfloat16_are_right_on_average() -> None:
    """Near 1 the spacing is 0.8%; an update of 0.1%, rounded to nearest, would never be seen."""
    (weight,) = module = module_of(torch.ones(256, 256).bfloat16())
    optimizer = make_optimizer(module, EIGHT, 0.1)
    for _ in range(4):
        weight.grad = torch.full_like(weight, -1.0)
        optimizer.param_groups[0].update(lr=0.001, weight_decay=0.0)
        optimizer.step()
    assert {1.0, 1.0078125} < {*weight.detach().flatten().tolist()}
    assert weight.detach().float().mean().item() == pytest.approx(1.004, abs=2e-4)


def test_the_rounding_depends_on_the_step_alone_and_draws_from_nobody() -> None:
    found = list[Tensor]()
    for seed in (1, 2):
        module = module_of(random(*MATRIX).bfloat16())
        torch.manual_seed(seed)
        take_steps(make_optimizer(module, EIGHT, 0.1), list(module), 0, 3)
        after = torch.rand(())
        torch.manual_seed(seed)
        assert after == torch.rand(())
        found.append(module[0].detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_loaded_states_go_on_bit_by_bit(stop: int) -> None:
    shapes = (MATRIX, ODD, (64,))
    whole = module_of(*(random(*shape).bfloat16() for shape in shapes))
    first = make_optimizer(whole, EIGHT, 0.1)
    take_steps(first, list(whole), 0, stop)
    saved = {
        "state": {
            n: {k: v.clone() for k, v in state.items()} for n, state in first.state_dict()["state"].items()
        }
    }
    resumed = module_of(*(one.detach() for one in whole))
    second = make_optimizer(resumed, EIGHT, 0.1)
    second.load_state_dict({**second.state_dict(), **saved})
    take_steps(first, list(whole), stop, 5)
    take_steps(second, list(resumed), stop, 5)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    for one, other in zip(whole, resumed, strict=True):
        mine, theirs = first.state[one], second.state[other]
        assert mine.keys() == theirs.keys()
        assert all(mine[name].dtype == theirs[name].dtype for name in mine)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def held(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int, int]:
    """Bytes of weights, gradients and states, the counters of steps left out."""
    parameters = list(module.parameters())
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    gradients = [one.grad for one in parameters if one.grad is not None]
    weights, grads, kept = (sum(t.nbytes for t in some) for some in (parameters, gradients, states))
    return weights, grads, kept


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", OptimizerName)
def test_the_memory_of_a_student_is_the_closed_form(name: OptimizerName, tied: bool) -> None:
    student = tiny_student(hidden_size=72, intermediate_size=131, tie_word_embeddings=tied)
    convert_weights(student, name)
    optimizer = make_optimizer(student, name, 0.1)
    take_steps(optimizer, list(student.parameters()), 0, 2)
    found = training_bytes((one.shape for one in student.parameters()), name)
    assert held(student, optimizer) == found
    assert found.total == sum(found)
    assert state_bytes(student.parameters(), name) == found.states


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=2), min_size=1, max_size=4))
def test_the_memory_of_any_tensors_is_the_closed_form(shapes: list[list[int]]) -> None:
    module = module_of(*(random(*shape).bfloat16() for shape in shapes))
    optimizer = make_optimizer(module, EIGHT, 0.1)
    take_steps(optimizer, list(module), 0, 1)
    found = training_bytes(shapes, EIGHT)
    assert held(module, optimizer) == found
    values = sum(one.numel() for one in module)
    assert 6 * values <= found.total <= bytes_per_parameter(OptimizerName.ADAMW) * values


def test_a_parameter_takes_16_bytes_or_6() -> None:
    assert bytes_per_parameter(OptimizerName.ADAMW) == 16
    assert bytes_per_parameter(EIGHT) == 6 + 8 / 256
    assert workspace_bytes(OptimizerName.ADAMW, 10**9) == 0
    assert workspace_bytes(EIGHT, 10**9) == workspace_bytes(EIGHT, 2**22) < 0.25e9


def test_buffers_keep_their_precision() -> None:
    student = tiny_student()
    before = {name: buffer.dtype for name, buffer in student.named_buffers()}
    convert_weights(student, EIGHT)
    assert {one.dtype for one in student.parameters()} == {torch.bfloat16}
    assert before == {name: buffer.dtype for name, buffer in student.named_buffers()}
    assert before
    convert_weights(student, OptimizerName.ADAMW)
    assert {one.dtype for one in student.parameters()} == {torch.float32}
