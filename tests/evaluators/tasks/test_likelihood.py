"""Log-likelihoods of choices, beside the model's own logits, one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from evaluators.tasks.examples import Example
from evaluators.tasks.likelihood import batches_by_length, beginning, encode_choices, log_likelihoods
from evaluators.tasks.task import ExampleScorer
from space.input_error import InputError

TEACHER = Path(__file__).parents[3] / "studies" / "demo" / "teacher"
EXAMPLES = [
    Example((("", " import os\nimport sys"), ("", " zq~~~")), 0, "code"),
    Example(
        (("def f(self):\n   ", " return self"), ("def f(self):\n   ", "}}}}{{{{ and more of it")), 0, "code"
    ),
    Example(
        (("for i in range(", "@@@@"), ("for i in range(", "10):"), ("for i in range(", "ten")), 1, "loop"
    ),
]


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TEACHER).eval()
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TEACHER)


@torch.no_grad()
def _log_probability(model: PreTrainedModel, tokenizer: Any, context: str, text: str) -> float:
    if context:
        known = len(tokenizer(context.rstrip()).input_ids)
        whole = tokenizer(context + text).input_ids
    else:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        whole, known = [first, *tokenizer(text, add_special_tokens=False).input_ids], 1
    ids = torch.tensor([whole])
    log_p = model(input_ids=ids).logits[0].log_softmax(-1)
    return float(log_p[known - 1 : -1].gather(-1, ids[0, known:, None]).sum())


def test_batches_give_what_one_text_at_a_time_gives(teacher: PreTrainedModel, tokenizer: Any) -> None:
    done: list[int] = []
    choices = encode_choices(tokenizer, EXAMPLES)
    found = log_likelihoods(teacher, choices, done.append)
    wanted = [_log_probability(teacher, tokenizer, *option) for one in EXAMPLES for option in one.options]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-4)
    assert sum(done) == len(choices) == 7


def test_the_scorer_knows_what_is_right(teacher: PreTrainedModel, tokenizer: Any) -> None:
    scores = ExampleScorer.of(EXAMPLES, tokenizer, teacher).score(teacher)
    for example, margin in zip(EXAMPLES, scores.margins, strict=True):
        sums = [_log_probability(teacher, tokenizer, *option) for option in example.options]
        right = sums.pop(example.answer)
        assert margin == pytest.approx(right - max(sums), abs=1e-3)
    assert scores.fields == ("code", "code", "loop")


def test_white_space_between_them_belongs_to_the_choice(tokenizer: Any) -> None:
    one, other = (
        encode_choices(tokenizer, [Example(((context, text), (context, "x")), 0)])[0]
        for context, text in [("return ", "self"), ("return", " self")]
    )
    assert one == other


def test_a_long_context_loses_its_beginning(tokenizer: Any) -> None:
    example = Example((("a b c d e f g h " * 40, "done"), ("a", " b")), 0)
    whole, cut = (encode_choices(tokenizer, [example], longest)[0] for longest in (None, 64))
    assert len(cut.ids) == 65, "the last token is predicted and not read"
    assert cut.ids == whole.ids[-65:]
    assert cut.predicted == whole.predicted


def test_a_choice_that_leaves_no_token_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="has to have tokens of its own"):
        encode_choices(tokenizer, [Example((("abc", ""), ("abc", "d")), 0)])


def test_without_a_beginning_of_text_its_end_stands_for_an_empty_context(tokenizer: Any) -> None:
    class Named:
        bos_token_id: int | None = None
        eos_token_id: int | None = 7

    named: Any = Named()
    assert beginning(named) == 7
    named.bos_token_id = 0
    assert beginning(named) == 0
    named.bos_token_id = named.eos_token_id = None
    with pytest.raises(InputError, match="this tokenizer has neither"):
        beginning(named)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_row_once_and_no_more_than_they_may(lengths: list[int], most: int) -> None:
    batches = batches_by_length(lengths, most)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[number] for number in batch) * len(batch) <= most
