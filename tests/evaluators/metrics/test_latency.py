from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.huggingface.caching import cache_argument
from evaluators.metrics import latency as latency_module
from evaluators.metrics.latency import Latency, Workload, measure_latency, measure_latency_beside
from tests.evaluators.tiny_models import tiny_model

Round = tuple[float, float]
"""Milliseconds of the prompt and of each token after it."""


class Clock:
    """A clock that only stubs move."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self, device: torch.device) -> float:
        return self.seconds


class Stub:
    """A model that takes the time it is told to: one round after the other."""

    device = torch.device("cpu")

    def __init__(self, clock: Clock, rounds: list[Round]) -> None:
        self.clock, self.rounds = clock, iter(rounds)
        self.prompts: list[tuple[int, ...]] = []
        self.tokens: list[tuple[int, ...]] = []

    def __call__(self, input_ids: Tensor, past_key_values: Any = None, **options: Any) -> SimpleNamespace:
        assert options["use_cache"] is True
        if past_key_values is None:
            self.prompts.append(tuple(input_ids.shape))
            prefill, self.decode = next(self.rounds)
            self.clock.seconds += prefill / 1e3
        else:
            self.tokens.append(tuple(input_ids.shape))
            self.clock.seconds += self.decode / 1e3
        return SimpleNamespace(logits=torch.zeros(len(input_ids), 1, 3), past_key_values="the cache")

    @property
    def model(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency_module, "synchronized_time", clock.now)
    return clock


def test_a_latency_is_the_prompt_and_every_token_of_the_answer() -> None:
    latency = Latency(prefill_ms=20.0, decode_ms_per_token=3.0, answer=32)
    assert latency.total_ms == 20 + 32 * 3
    assert latency.scaled(0.5, 2.0) == Latency(10.0, 6.0, 32)


def test_the_medians_of_the_rounds_after_the_first(clock: Clock) -> None:
    rounds = [(900.0, 90.0), (30.0, 5.0), (10.0, 9.0), (20.0, 1.0), (1000.0, 3.0), (15.0, 4.0)]
    stub = Stub(clock, rounds)
    load = Workload(batch=3, prompt=17, answer=100, timed_answer=4, repeats=5)
    latency = measure_latency(stub.model, load)
    assert latency.prefill_ms == pytest.approx(20.0)
    assert latency.decode_ms_per_token == pytest.approx(4.0)
    assert latency.total_ms == pytest.approx(20.0 + 100 * 4.0)
    assert stub.prompts == [(3, 17)] * 6
    assert stub.tokens == [(3, 1)] * 6 * 4


def test_the_medians_of_the_ratios_times_the_reference(clock: Clock) -> None:
    student = Stub(clock, [(1.0, 1.0), (10.0, 2.0), (12.0, 4.0), (5.0, 6.0)])
    teacher = Stub(clock, [(9.0, 9.0), (20.0, 4.0), (20.0, 5.0), (20.0, 6.0)])
    reference = Latency(prefill_ms=100.0, decode_ms_per_token=8.0, answer=10)
    load = Workload(repeats=3)
    latency = measure_latency_beside(student.model, teacher.model, reference, load)
    assert latency.prefill_ms == pytest.approx(100 * 0.5)  # of 0.5, 0.6, 0.25
    assert latency.decode_ms_per_token == pytest.approx(8 * 0.8)  # of 0.5, 0.8, 1.0
    assert latency.answer == 10


slowness = st.lists(st.floats(0.1, 50), min_size=4, max_size=4)


@given(slowness, st.floats(0.01, 10), st.floats(0.01, 10))
def test_what_slows_both_does_not_matter(slow: list[float], prefill: float, decode: float) -> None:
    """A machine that is busy for whole rounds changes no ratio."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(latency_module, "synchronized_time", clock.now)
        student = Stub(clock, [(20 * prefill * s, 3 * decode * s) for s in slow])
        teacher = Stub(clock, [(20 * s, 3 * s) for s in slow])
        reference = Latency(40.0, 2.0, 10)
        latency = measure_latency_beside(student.model, teacher.model, reference, Workload(repeats=3))
    assert latency.prefill_ms == pytest.approx(40 * prefill, rel=1e-6)
    assert latency.decode_ms_per_token == pytest.approx(2 * decode, rel=1e-6)


def test_a_teacher_beside_itself_is_as_fast_as_itself(clock: Clock) -> None:
    rounds = [(20.0, 3.0)] * 4
    reference = Latency(21.0, 3.5, 32)
    latency = measure_latency_beside(
        Stub(clock, rounds).model, Stub(clock, rounds).model, reference, Workload(repeats=3)
    )
    assert latency.total_ms == pytest.approx(reference.total_ms)


def test_a_sixth_of_the_layers_is_faster() -> None:
    """On this machine, whatever else it does: 2 layers against 12, in turns."""
    deep, flat = (tiny_model(num_hidden_layers=layers) for layers in (12, 2))
    load = Workload(prompt=16, timed_answer=4, repeats=5)
    reference = Latency(100.0, 10.0, 32)
    latency = measure_latency_beside(flat, deep, reference, load)
    assert latency.decode_ms_per_token < 7.0
    assert latency.prefill_ms < 70.0


def test_a_measurement_reads_prompt_and_answer_and_leaves_the_model_alone() -> None:
    model, shapes, caches = tiny_model(), list[tuple[int, int]](), list[int]()

    def watch(_: object, __: object, options: dict[str, Any]) -> None:
        cache = options.get(cache_argument(model))
        shapes.append(tuple(options["input_ids"].shape))
        caches.append(cache.get_seq_length() if cache is not None else 0)

    hook = model.register_forward_pre_hook(watch, with_kwargs=True)
    latency = measure_latency(model, Workload(batch=2, prompt=9, timed_answer=3, repeats=1))
    hook.remove()
    assert shapes == ([(2, 9)] + [(2, 1)] * 3) * 2
    assert caches == [0, 9, 10, 11] * 2
    assert latency.prefill_ms > 0 < latency.decode_ms_per_token
    assert all(parameter.grad is None for parameter in model.parameters())
