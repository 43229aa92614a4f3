"""Shares of the time: those of a clock that only the modules move."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluators.metrics import latency as latency_module
from evaluators.metrics.latency import Workload, latency_shares
from tests.evaluators.metrics.test_latency import Clock
from tests.evaluators.tiny_models import tiny_model

LOAD = Workload(prompt=6, answer=4, timed_answer=2, repeats=3)


class Slow:
    """A hook that takes so many seconds: of a prompt, and of a token."""

    def __init__(self, clock: Clock, prompt: float, token: float) -> None:
        self.clock, self.times = clock, (prompt, token)

    def __call__(self, module: Any, positional: Any, named: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        self.clock.seconds += self.times[states.shape[1] == 1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency_module, "synchronized_time", clock.now)
    return clock


def test_shares_are_those_of_the_modules_and_the_rest(clock: Clock) -> None:
    model = tiny_model("llama")
    layers = len(model.model.layers)
    modules = {"lm_head": "head"}
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(Slow(clock, 3, 1), with_kwargs=True)
        layer.mlp.register_forward_hook(Slow(clock, 1, 2), with_kwargs=True)
        layer.input_layernorm.register_forward_hook(Slow(clock, 1, 0), with_kwargs=True)
        modules |= {f"model.layers.{number}.self_attn": "attention", f"model.layers.{number}.mlp": "mlp"}
    model.lm_head.register_forward_hook(lambda *_: setattr(clock, "seconds", clock.seconds + layers))
    found = latency_shares(model, modules, LOAD)
    assert found.prefill == pytest.approx({"head": 1 / 6, "attention": 1 / 2, "mlp": 1 / 6, "rest": 1 / 6})
    assert found.decode == pytest.approx({"head": 1 / 4, "attention": 1 / 4, "mlp": 1 / 2, "rest": 0})


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    found = latency_shares(model, {"lm_head": "head", "model.embed_tokens": "embeddings"}, LOAD)
    assert sum(found.prefill.values()) == pytest.approx(1)
    assert sum(found.decode.values()) == pytest.approx(1)
    assert set(found.decode) == {"head", "embeddings", "rest"}
    assert all(0 < share < 1 for share in (*found.prefill.values(), *found.decode.values()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_pass_leaves_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def fails(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(latency_module, "time_once", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        latency_shares(model, {"lm_head": "head"}, LOAD)
    assert not any(module._forward_hooks for module in model.modules())


def test_no_gradient_is_kept() -> None:
    model = tiny_model("llama").requires_grad_(True)
    latency_shares(model, {"lm_head": "head"}, LOAD)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
