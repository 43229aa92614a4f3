from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluators.metrics import loss as loss_module
from evaluators.metrics.loss import bits_per_byte, perplexity, predicted_tokens, validation_loss
from tests.evaluators.tiny_models import VOCABULARY, random_tokens, tiny_model
from tests.evaluators.tiny_types import TYPES, model_of

BLOCKS = random_tokens(7, 9)


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [("llama", False), ("llama", True), ("mistral", False), ("qwen2", True), ("qwen3", False)],
)
def test_the_loss_is_the_librarys_own(model_type: str, tied: bool) -> None:
    model = tiny_model(model_type, tie_word_embeddings=tied)
    with torch.no_grad():
        each = [model(input_ids=b[None].long(), labels=b[None].long()).loss.double() for b in BLOCKS]
    assert validation_loss(model, BLOCKS) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_loss_is_the_librarys_own_for_any_head(model_type: str) -> None:
    model = model_of(model_type)
    with torch.no_grad():
        each = [model(input_ids=b[None].long(), labels=b[None].long()).loss.double() for b in BLOCKS]
    assert validation_loss(model, BLOCKS) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


@pytest.mark.parametrize(("at_once", "size"), [(1, 1), (20, 3), (27, 5), (4096, 8), (4096, 1000)])
def test_the_loss_does_not_depend_on_how_it_is_computed(
    monkeypatch: pytest.MonkeyPatch, at_once: int, size: int
) -> None:
    model = tiny_model()
    whole = validation_loss(model, BLOCKS)
    monkeypatch.setattr(loss_module, "_TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(loss_module, "token_slice", lambda vocabulary: size)
    assert validation_loss(model, BLOCKS) == pytest.approx(whole, rel=1e-6)


def test_it_tells_how_many_tokens_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_TOKENS_AT_ONCE", 20)
    told: list[int] = []
    validation_loss(tiny_model(), BLOCKS, advance=told.append)
    assert told == [18, 18, 18, 9]


@pytest.mark.parametrize("at_once", [1, 20, 4096])
def test_only_what_is_learnt_counts(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Block 4 has nothing that does, and of block 5 it is the first token of the text that follows."""
    learnt = torch.rand(BLOCKS.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    learnt[4] = False
    learnt[5] = torch.arange(9) == 8
    model, each = tiny_model(), list[float]()
    with torch.no_grad():
        shares = model(input_ids=BLOCKS.long()).logits.double().log_softmax(-1)
    for row, place in learnt.nonzero().tolist():
        if place < 8:
            each.append(-float(shares[row, place, BLOCKS[row, place + 1]]))
    monkeypatch.setattr(loss_module, "_TOKENS_AT_ONCE", at_once)
    wanted = sum(each) / len(each)
    assert predicted_tokens(BLOCKS, learnt) == len(each) < predicted_tokens(BLOCKS) == 7 * 8
    assert validation_loss(model, BLOCKS, learnt) == pytest.approx(wanted, rel=1e-5)
    assert validation_loss(model, BLOCKS, torch.ones_like(learnt)) == validation_loss(model, BLOCKS)


def test_a_mean_over_no_token_is_not_a_loss() -> None:
    learnt = torch.zeros(BLOCKS.shape, dtype=torch.bool)
    learnt[:, -1] = True
    with pytest.raises(AssertionError, match="no token"):
        validation_loss(tiny_model(), BLOCKS, learnt)


def test_a_head_of_zeros_knows_nothing() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("lm_head.weight").zero_()
    assert validation_loss(model, BLOCKS) == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_the_first_token_of_a_block_is_not_predicted() -> None:
    """A model that sees nothing of the past: only which tokens come counts, and not the first."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").fill_(1.0)
        states = model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long)).last_hidden_state[0, 0]
        rates = (model.get_parameter("lm_head.weight") @ states).log_softmax(-1)
    blocks = torch.tensor([[5, 1, 1], [7, 2, 3]])
    wanted = -float(rates[[1, 1, 2, 3]].mean())
    assert validation_loss(model, blocks) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_nan_in_a_weight_is_nan_in_the_loss(name: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(name).fill_(float("nan"))
    assert math.isnan(validation_loss(model, BLOCKS))


def test_a_bfloat16_model_is_summed_in_float64() -> None:
    model = tiny_model()
    wanted = validation_loss(model, BLOCKS)
    assert validation_loss(model.bfloat16(), BLOCKS) == pytest.approx(wanted, rel=0.02)


def test_a_model_in_training_is_not_measured() -> None:
    with pytest.raises(AssertionError, match="evaluation mode"):
        validation_loss(tiny_model().train(), BLOCKS)


def test_bits_per_byte_of_known_codes() -> None:
    """A fair coin for each token of 4 bytes is a quarter of a bit; bytes at random are 8 bits."""
    assert bits_per_byte(math.log(2), tokens=100, text_bytes=400) == pytest.approx(0.25)
    assert bits_per_byte(math.log(256), tokens=10, text_bytes=10) == pytest.approx(8)


@given(st.floats(0, 20), st.integers(1, 10**6), st.integers(1, 10**7))
def test_bits_per_byte_in_closed_form(loss: float, tokens: int, text_bytes: int) -> None:
    """2 to the bits of the text is e to its nats."""
    bits = bits_per_byte(loss, tokens, text_bytes) * text_bytes
    assert bits * math.log(2) == pytest.approx(loss * tokens)


def test_perplexity_of_known_codes() -> None:
    """A uniform choice of eight is a loss of ln 8; beyond what a float holds it is infinite."""
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(8)) == pytest.approx(8.0)
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))
