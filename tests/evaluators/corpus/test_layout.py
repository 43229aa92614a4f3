"""Separators are those of texts, not of turns; blocks begin as the teacher knows them best."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from evaluators.corpus.layout import Layout, end_of_text, possible_layouts, usual_layout
from evaluators.metrics.layouts import best_layout
from evaluators.teacher import load_teacher
from tests.evaluators.corpus.chats import CHATML, chat_tokenizer

END, TURN, TURN_END, S, S_END = range(5)


def test_tokens_of_turns_separate_no_texts() -> None:
    assert possible_layouts(chat_tokenizer(CHATML)) == [Layout(after=END)]


def test_without_a_template_the_tokenizers_words_count() -> None:
    plain = chat_tokenizer(None, begin=None, end="<|im_end|>")
    assert possible_layouts(plain) == [Layout(after=TURN_END)]


def test_what_a_template_writes_once_separates_texts() -> None:
    once = "{{ bos_token }}" + CHATML
    tokenizer = chat_tokenizer(once, begin="<s>", end="</s>")
    assert end_of_text(tokenizer) == S_END
    assert usual_layout(tokenizer) == Layout(before=S)
    assert Layout(before=S, after=S_END, beginning=S) in possible_layouts(tokenizer)


def test_what_the_tokenizer_adds_comes_first() -> None:
    tokenizer = chat_tokenizer(None, begin="<s>", end="</s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", S)]
    )
    assert usual_layout(tokenizer) == Layout(before=S, beginning=S)


@given(st.lists(st.integers(0, 9), max_size=8), st.sampled_from([None, 5]), st.sampled_from([None, 6]))
def test_separators_surround_a_document_and_are_not_doubled(
    tokens: list[int], before: int | None, after: int | None
) -> None:
    layout = Layout(before, after)
    whole = layout.separated(tokens)
    assert layout.separated(whole) == whole
    assert before is None or whole[0] == before
    assert after is None or whole[-1] == after
    assert sum((before is not None, after is not None)) >= len(whole) - len(tokens)


def test_a_teacher_of_stories_is_better_without_beginnings(real: Path) -> None:
    """It knows <s> before each story and nowhere else; its tokenizer says nothing of blocks."""
    cpu = torch.device("cpu")
    teacher = load_teacher(str(real / "stories260K"), revision=None, device=cpu, dtype=torch.float32)
    text = (real / "tinystories.txt").read_text()[:60_000]
    found = best_layout(teacher.model, teacher.tokenizer, text.split("\n\n\n") or [text], 256)
    assert found.beginning is None


def test_a_single_layout_is_not_measured(tiny_teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.bos_token = None
    assert best_layout(None, tokenizer, [], 64) == Layout(after=0)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_real_chat_models_end_of_text(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.eos_token == "<|im_end|>"
    assert possible_layouts(tokenizer) == [Layout(after=tokenizer.get_vocab()["<|endoftext|>"])]
