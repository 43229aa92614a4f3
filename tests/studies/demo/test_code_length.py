"""Code lengths of a language model against closed forms and Hugging Face's own loss."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from studies.demo.code_length import Windows, bits

VOCABULARY, BOS = 32, 0


def evaluated(config: LlamaConfig) -> LlamaForCausalLM:
    model = LlamaForCausalLM(config)
    model.train(False)
    return model


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
    )
    return evaluated(config)


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1, VOCABULARY), k=length)


@given(st.lists(st.integers(1, 1000), max_size=80, unique=True), st.integers(1, 20), st.integers(1, 20))
def test_every_token_is_counted_once_after_the_token_before_it(
    tokens: list[int], length: int, stride: int
) -> None:
    windows = Windows(max(length, stride), stride)
    before = dict(zip(tokens, [BOS, *tokens], strict=False))
    counted = []
    for inputs, targets in windows.cut(tokens, BOS):
        assert len(inputs) == len(targets) <= windows.length
        for shown, target in zip(inputs, targets, strict=True):
            if target >= 0:
                assert shown == before[target]
                counted.append(target)
    assert counted == tokens


def test_overlapping_windows_give_every_later_token_a_past() -> None:
    rows = list(Windows(4, 2).cut([1, 2, 3, 4, 5, 6, 7], BOS))
    assert rows == [
        ([0, 1, 2, 3], [1, 2, 3, 4]),
        ([2, 3, 4, 5], [-100, -100, 5, 6]),
        ([4, 5, 6], [-100, -100, 7]),
    ]


@pytest.mark.parametrize("stride", [0, 9])
def test_windows_that_leave_tokens_out_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride must be from 1 to the length; {stride} of 8"):
        Windows(8, stride)


def test_a_uniform_model_takes_the_logarithm_of_the_vocabulary(model: LlamaForCausalLM) -> None:
    uniform = evaluated(model.config)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    documents = [text(50), text(7)]
    assert bits(uniform, documents, BOS, Windows(16, 8)) == pytest.approx(57 * math.log2(VOCABULARY))


def test_one_window_is_the_loss_of_hugging_face(model: LlamaForCausalLM) -> None:
    tokens = text(40)
    row = torch.tensor([[BOS, *tokens]])
    with torch.inference_mode():
        nats_per_token = model(input_ids=row, labels=row).loss.item()
    expected = 40 * nats_per_token / math.log(2)
    assert bits(model, [tokens], BOS, Windows(40, 40)) == pytest.approx(expected, rel=1e-5)


def test_blocks_are_texts_of_their_own_but_for_their_first_token(model: LlamaForCausalLM) -> None:
    tokens = text(24)
    first = bits(model, [tokens[:12]], BOS, Windows(12, 12))
    second = bits(model, [tokens[12:]], tokens[11], Windows(12, 12))
    assert bits(model, [tokens], BOS, Windows(12, 12)) == pytest.approx(first + second, rel=1e-5)


def test_neither_batches_nor_their_filling_matter(model: LlamaForCausalLM) -> None:
    documents = [text(length, seed=length) for length in (3, 30, 17, 11)]
    one_by_one = sum(bits(model, [document], BOS, Windows(10, 5), batch=1) for document in documents)
    assert bits(model, documents, BOS, Windows(10, 5), batch=5) == pytest.approx(one_by_one, rel=1e-5)
