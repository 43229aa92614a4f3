"""The pace of a device: timed on a student that is small, by arithmetic of one that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import evaluators.metrics.pace
from evaluators.metrics.latency import Workload
from evaluators.metrics.pace import Pace, student_pace
from tests.evaluators.distillation.conftest import forget

WORKLOAD = Workload(prompt=16, timed_answer=2, repeats=2)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluators.metrics.pace._SECONDS", 0.2)
    forget()


def llama(tied: bool = False) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )


def pace(config: LlamaConfig) -> Pace:
    found = student_pace(config, torch.device("cpu"), "float32", 2, 32, WORKLOAD)
    forget()
    return found


def test_a_small_student_is_timed() -> None:
    found = pace(llama())
    assert found.timed
    assert 100 < found.learnt < 1e7
    assert found.read > found.learnt, "reading is a third of learning"
    assert 0 < found.latency_seconds < 10


def test_one_that_would_take_too_long_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two operations for each weight in a matrix to read a token, six to learn it, at half of the rate."""
    monkeypatch.setattr("evaluators.metrics.pace.product_rate", lambda *_: 1e5)
    found = pace(llama())
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
    weights = 2 * layer + 32 + 32 * 256
    assert not found.timed
    assert found.read == pytest.approx(0.5e5 / (2 * weights))
    assert found.learnt == pytest.approx(found.read / 3)
    assert found.latency_seconds == pytest.approx(2 * 3 * (16 + 2) / found.read)


def test_smaller_steps_are_timed_where_whole_ones_take_too_long() -> None:
    """The update is then timed apart: a whole step has as many as a smaller one."""
    slow = Pace(64.0, 192.0, 1.0, timed=False)
    timed_step = evaluators.metrics.pace._timed_step
    assert timed_step(slow, 32, 1024) == (1, 1024)  # three steps of 16 seconds
    assert timed_step(slow, 4, 16) == (1, 16)
    assert timed_step(replace(slow, learnt=16.0), 32, 1024) == (1, 256)
    assert timed_step(replace(slow, learnt=1.0), 32, 1024) is None
    assert timed_step(replace(slow, learnt=1e6), 32, 1024) == (32, 1024)


def test_the_pace_of_smaller_steps_is_that_of_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluators.metrics.pace._step_seconds", lambda student, text, *_: text.numel() + 2.0)
    monkeypatch.setattr("evaluators.metrics.pace._update_seconds", lambda *_: 2.0)
    monkeypatch.setattr("evaluators.metrics.pace._timed_step", lambda *_: (1, 16))
    assert pace(llama()).learnt == pytest.approx(2 * 32 / (2 * 32 + 2))


def test_one_that_memory_does_not_hold_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluators.metrics.pace.free_bytes", lambda device: 1000)
    assert not pace(llama()).timed


def test_a_head_that_is_the_embeddings_counts_once() -> None:
    with torch.device("meta"):
        tied, apart = (AutoModelForCausalLM.from_config(llama(one)) for one in (True, False))
    count = evaluators.metrics.pace._matrix_parameters
    assert count(tied) == count(apart) == tied.num_parameters()
