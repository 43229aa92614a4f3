from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import (
    check_head,
    decoder,
    final_states,
    head_dtype,
    logits_of,
    states_width,
    vocabulary_size,
)
from space.input_error import InputError
from tests.evaluators.tiny_models import VOCABULARY, random_tokens, tiny_model
from tests.evaluators.tiny_types import TYPES, model_of

TOKENS = random_tokens(2, 9).long()


def in_slices(model: PreTrainedModel, states: Tensor) -> Tensor:
    """(B, T, V) logits made of five tokens at a time."""
    rows = [logits_of(model, some) for some in states.flatten(0, 1).split(5)]
    return torch.cat(rows).view(*states.shape[:2], -1)


@pytest.mark.parametrize("model_type", TYPES)
def test_logits_and_gradients_are_the_models_own(model_type: str) -> None:
    model = model_of(model_type)
    whole, halves = model(input_ids=TOKENS).logits, in_slices(model, final_states(model, TOKENS))
    torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-6)
    parameters = list(model.parameters())
    wanted: Sequence[Tensor | None] = torch.autograd.grad(whole.square().sum(), parameters, allow_unused=True)
    gradients = torch.autograd.grad(halves.square().sum(), parameters, allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in wanted if gradient is not None)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_check_passes_and_leaves_nothing_behind(model_type: str) -> None:
    model = model_of(model_type)
    before = [set(vars(module)) for module in model.modules()]
    check_head(model)
    assert [set(vars(module)) for module in model.modules()] == before
    assert vocabulary_size(model) == model(input_ids=TOKENS).logits.shape[-1] == VOCABULARY
    assert states_width(model) == final_states(model, TOKENS).shape[-1]


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "granite", "phi", "gptj", "minicpm3"])
def test_these_heads_are_more_than_a_matrix(model_type: str) -> None:
    """So that the tests above do not pass for want of anything to miss."""
    model = model_of(model_type)
    states = final_states(model, TOKENS)
    plain = nn.functional.linear(states, model.get_output_embeddings().weight)
    assert not torch.allclose(plain, in_slices(model, states), rtol=1e-2)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_precision_is_that_of_the_context(model_type: str) -> None:
    model = model_of(model_type)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = in_slices(model, final_states(model, TOKENS))
        assert torch.equal(logits, model(input_ids=TOKENS).logits)
    assert logits.dtype == torch.bfloat16
    assert not logits.requires_grad
    assert head_dtype(model) == torch.float32


def test_the_decoder_answers_again_after_an_error() -> None:
    model = tiny_model()
    wanted = model(input_ids=TOKENS).logits
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        logits_of(model, torch.zeros(3, 5))
    assert torch.equal(model(input_ids=TOKENS).logits, wanted)


def test_a_forward_that_somebody_put_there_stays() -> None:
    model = tiny_model()
    own = decoder(model).forward
    calls: list[int] = []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return own(*arguments, **keywords)

    vars(decoder(model))["forward"] = counted
    check_head(model)
    assert vars(decoder(model))["forward"] is counted
    assert len(calls) == 2, "once whole, once for the states, never for the head"


def reading(what: Callable[[Any, Tensor], Tensor]) -> PreTrainedModel:
    """A model whose head reads something else of what its decoder returns."""
    model = tiny_model()
    body, head = decoder(model), model.get_output_embeddings()

    def forward(input_ids: Tensor, **_: object) -> SimpleNamespace:
        output = body(input_ids=input_ids, output_hidden_states=True, use_cache=False)
        return SimpleNamespace(logits=head(what(output, input_ids)))

    vars(model)["forward"] = forward
    return model


@pytest.mark.parametrize(
    ("what", "because"),
    [
        (
            lambda output, _: output.hidden_states[0],
            r"its own code fails on them \('NoneType' object is not subscriptable\)",
        ),
        (
            lambda output, tokens: output.last_hidden_state * tokens[..., None],
            r"logits made from them differ by [\d.]+ from those of up to [\d.]+",
        ),
    ],
)
def test_a_head_that_reads_something_else_is_refused(
    what: Callable[[Any, Tensor], Tensor], because: str
) -> None:
    with pytest.raises(InputError) as error:
        check_head(reading(what))
    rule = "The logits of a teacher have to follow from its final hidden states; in 'llama', "
    assert re.fullmatch(f"{rule}{because}. Choose another teacher with --model.", str(error.value))


def test_a_head_that_reads_the_states_passes() -> None:
    check_head(reading(lambda output, _: output.last_hidden_state))


def test_a_class_without_a_module_below_its_head_is_refused() -> None:
    flat: Any = tiny_model().base_model
    with pytest.raises(InputError, match="those of LlamaModel lie beside it"):
        decoder(flat)
