from __future__ import annotations

import inspect

import pytest
import torch

from evaluators.huggingface.caching import cache_argument, cache_of
from tests.evaluators.tiny_models import random_tokens, tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mamba"])
def test_a_text_in_two_parts_has_the_logits_of_the_whole(model_type: str) -> None:
    model, tokens = tiny_model(model_type), random_tokens(1, 6).long()
    argument = cache_argument(model)
    assert argument in inspect.signature(model.forward).parameters
    with torch.no_grad():
        whole = model(input_ids=tokens).logits
        first = model(input_ids=tokens[:, :5], use_cache=True)
        last = model(input_ids=tokens[:, 5:], use_cache=True, **{argument: cache_of(first)})
    torch.testing.assert_close(last.logits[:, -1], whole[:, -1])


def test_a_forward_that_names_none_is_given_the_usual_one() -> None:
    assert cache_argument(lambda **options: None) == "past_key_values"
