"""Prompts are beginnings of held-out documents; continuations are what the model would say greedily."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evaluators.corpus.blocks import Corpus
from evaluators.corpus.layout import Layout
from search.stages.inspection import Prompts, TextSample, prompts_of, sample_texts
from tests.contracts.tiny import each, verified

BLOCK = 64


def corpus_of(text: list[int]) -> Corpus:
    blocks = torch.tensor(text[: len(text) // BLOCK * BLOCK], dtype=torch.int32).view(-1, BLOCK)
    return Corpus("text", blocks[:0], blocks[:0], blocks, 1, "fingerprint", layout=Layout(before=0))


def encoded(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> list[int]:
    """As the packing does it: every document begins with the separator."""
    return [token for text in documents for token in (0, *tokenizer(text)["input_ids"])]


class Repeats:
    """Says the letters of a text one after the other, from wherever a prompt leaves off."""

    device = torch.device("cpu")

    def __init__(self, tokens: list[int], eos: int | list[int] | None = None) -> None:
        self.tokens = tokens
        self.generation_config = type("Settings", (), {"eos_token_id": eos})()
        self.asked: list[Any] = []

    def generate(self, prompt: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any) -> Any:
        self.asked.append(generation_config)
        assert attention_mask.shape == prompt.shape
        made = self.tokens[: generation_config.max_new_tokens]
        return torch.cat([prompt, torch.tensor([made])], dim=1)


def test_prompts_begin_documents_and_end_with_a_word(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [f"{name} went to the market and bought seven apples there. " * 3 for name in "ABCDEFGH"]
    found = prompts_of(corpus_of(encoded(byte_tokenizer, documents)), byte_tokenizer, 512)
    assert found.texts == tuple(f"{name} went to the market" for name in "ACEG"), "spread, and whole words"
    assert all(tokens[0] == 0 and len(tokens) <= 25 for tokens in found.tokens)
    assert [byte_tokenizer.decode(tokens[1:]) for tokens in found.tokens] == list(found.texts)


def test_where_too_few_documents_begin_blocks_do(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = encoded(byte_tokenizer, ["one two three four five six seven " * 40])
    found = prompts_of(corpus_of(tokens), byte_tokenizer, 512)
    assert len(found.texts) == len(set(map(tuple, found.tokens))) == 4
    assert found.texts[0] == "one two three four five"
    assert all(text in "one two three four five six seven " * 40 for text in found.texts)


@pytest.mark.parametrize("context", [4, 16, 40, 64, 100, None])
def test_prompt_and_answer_keep_to_the_context(
    context: int | None, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens = encoded(byte_tokenizer, ["abcdefgh " * 30] * 8)
    found = prompts_of(corpus_of(tokens), byte_tokenizer, context)
    longest = max(map(len, found.tokens)) + found.new_tokens
    assert 1 < longest <= (context or BLOCK)
    assert found.new_tokens >= 1


@pytest.mark.parametrize(("eos", "made"), [(None, "xyz\0abc"), (0, "xyz\0abc"), ([9, 0], "xyz\0abc")])
def test_a_text_ends_where_the_model_ends_it(
    eos: int | list[int] | None, made: str, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens = [0 if letter == "\0" else byte_tokenizer(letter)["input_ids"][0] for letter in made]
    prompts = Prompts(([0, *byte_tokenizer("ab")["input_ids"]],), ("ab",), 48)
    model: Any = Repeats(tokens, eos)
    assert sample_texts(model, byte_tokenizer, prompts) == [TextSample("xyz", ended=True)]
    [settings] = model.asked
    assert settings.do_sample is False
    assert settings.use_cache is True


def test_half_of_a_letter_is_no_reason_to_repeat_the_prompt(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    umlaut = byte_tokenizer("ä")["input_ids"]
    prompts = Prompts(([0, umlaut[0]],), ("\ufffd",), 2)
    model: Any = Repeats([umlaut[1], *byte_tokenizer("b")["input_ids"]])
    [found] = sample_texts(model, byte_tokenizer, prompts)
    assert found == TextSample("\ufffdb", ended=False)


def test_greedy_is_the_likeliest_token_each_time(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
        )
    ).eval()
    model.generation_config.temperature = 0.1
    model.generation_config.repetition_penalty = 9.0
    prompts = Prompts(([0, 70, 71],), (str(byte_tokenizer.decode([70, 71])),), 6)
    tokens = [0, 70, 71]
    for _ in range(6):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert 0 not in tokens[3:]
    wanted = str(byte_tokenizer.decode(tokens[1:])).removeprefix(prompts.texts[0])
    assert sample_texts(model, byte_tokenizer, prompts) == [TextSample(wanted, ended=False)]
    assert model.generation_config.repetition_penalty == 9.0, "the model's own settings stay"


@pytest.mark.parametrize("case", each("llama-tied-biases", "gpt2", "bloom", "lfm2"))
def test_any_class_writes(case: str, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = verified(case).model
    prompts = Prompts(([1, 5, 7], [2, 9]), ("x", "y"), 5)
    found = sample_texts(model, byte_tokenizer, prompts)
    assert len(found) == 2
    assert all(one.ended or one.text for one in found)
