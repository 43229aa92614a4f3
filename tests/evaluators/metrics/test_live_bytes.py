"""Bytes that are counted on tensors without values, beside known answers and beside tensors with values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evaluators.huggingface.final_states import final_states
from evaluators.metrics.live_bytes import LiveBytes, counted, valueless, valueless_model
from tests.evaluators.tiny_models import tiny_model


def test_a_sum_of_known_tensors() -> None:
    before = valueless(10, 10)
    with counted() as live:
        one = before + 1
        assert (live.now, live.peak) == (400, 400)
        two = one.double()
        assert live.now == 1200
        del one
        assert (live.now, live.peak) == (800, 1200)
        view = two.view(100)[:50]
        assert live.now == 800, "a view has no memory of its own"
        two += 1
        assert live.now == 800
        del two, view
        assert live.now == 0


def test_weights_are_left_out_and_what_autograd_saves_is_not() -> None:
    layer = nn.Linear(8, 16, bias=False)
    layer.weight = nn.Parameter(valueless(16, 8))
    tokens = valueless(4, 8)
    with counted(layer) as live:
        states = layer(tokens).relu()
        saved = live.now - tokens.nbytes  # autograd looks at it as a view
        assert saved in (4 * 16 * 4, 4 * 16 * 4 - tokens.nbytes), "the product's output is not needed again"
        states.sum().backward()
        assert layer.weight.grad is not None
        del states
        assert live.now - tokens.nbytes in (16 * 8 * 4, 16 * 8 * 4 - tokens.nbytes)


@pytest.mark.parametrize("half", [False, True])
def test_counts_are_those_of_tensors_with_values(half: bool) -> None:
    model = tiny_model()

    def run(model: nn.Module, tokens: Tensor) -> tuple[int, int]:
        with counted(model) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                states = final_states(model, tokens)  # type: ignore[arg-type]
            kept = live.now
            states.sum().backward()
            return kept, live.peak

    real = run(model, torch.zeros(2, 16, dtype=torch.long))
    found = run(valueless_model(model.config, torch.float32), valueless(2, 16, dtype=torch.long))
    assert abs(found[0] / real[0] - 1) < 0.02
    assert abs(found[1] / real[1] - 1) < 0.02


def test_autocast_converts_as_it_does_with_values() -> None:
    layer = nn.Linear(8, 8)
    with counted(layer), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(2, 8)).dtype is torch.bfloat16
    shape = nn.Linear(8, 8, device="meta")
    for name, parameter in list(shape.named_parameters()):
        setattr(shape, name, nn.Parameter(valueless(*parameter.shape)))
    with counted(shape) as live, torch.autocast("cpu", torch.bfloat16):
        output = shape(valueless(2, 8))
        assert output.dtype is torch.bfloat16
        assert live.now >= 2 * (64 + 8), "the converted weights are kept for the backward pass"


def test_a_peak_begins_again() -> None:
    before = valueless(100)
    with LiveBytes() as live:
        found = [before * 2 for _ in range(3)]
        found.pop()
        assert (live.now, live.peak) == (800, 1200)
        live.reset()
        assert live.peak == 800
