"""Conversations are written as the chat template writes them, and the answers are found in the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from evaluators.corpus.chat import ChatWriter, TemplateError, plain_text
from evaluators.corpus.conversations import Conversation
from evaluators.corpus.documents import contents_of_rows
from space.input_error import InputError
from tests.evaluators.corpus.chats import CHATML, MARKED, STRICT, THINKING, chat_tokenizer

SAID = st.text(st.characters(codec="utf-8", exclude_characters="\ue000\ue001\ue002"), min_size=1, max_size=12)


def conversation(*contents: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": said} for place, said in enumerate(contents)]
    return Conversation((*([{"role": "system", "content": system}] if system else []), *messages))


def answers(template: str | None, found: Conversation) -> list[str]:
    writer = ChatWriter(chat_tokenizer(template))
    text = writer.text(found)
    return [text[start:end] for start, end in writer.answers(found)]


@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING])
def test_the_text_is_that_of_the_template(template: str) -> None:
    tokenizer, said = chat_tokenizer(template), conversation("a", "b", "c", "d", system="s")
    text = ChatWriter(tokenizer).text(said)
    assert text == tokenizer.apply_chat_template(list(said.messages), tokenize=False)


@pytest.mark.parametrize("template", [CHATML, MARKED])
@given(st.lists(SAID, min_size=2, max_size=6))
def test_answers_are_what_the_assistant_says_with_the_end_of_its_turn(template: str, said: list[str]) -> None:
    found = answers(template, conversation(*said))
    assert found == [f"{answer}<|im_end|>" for answer in said[1::2]]


def test_answers_that_a_later_turn_shortens_are_found() -> None:
    said = conversation("a", "<think>hm</think>b", "c", "<think>so</think>d")
    assert answers(THINKING, said) == ["b<|im_end|>", "<think>so</think>d<|im_end|>"]


def test_equal_messages_are_not_taken_for_each_other() -> None:
    assert answers(CHATML, conversation("a", "a", "a", "a")) == ["a<|im_end|>", "a<|im_end|>"]


def test_without_a_template_the_text_is_plain() -> None:
    said = conversation("Is it far?", " No. ", "Good.", "Yes.", system="Be brief.")
    plain = "System: Be brief.\n\nUser: Is it far?\n\nAssistant: No.\n\nUser: Good.\n\nAssistant: Yes.\n"
    assert plain_text(said.messages) == plain
    assert ChatWriter(chat_tokenizer(None)).text(said) == plain
    assert answers(None, said) == ["No.", "Yes."]


def test_what_the_template_refuses_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    writer = ChatWriter(chat_tokenizer(STRICT))
    with pytest.raises(TemplateError, match="no system"):
        writer.text(conversation("a", "b", system="s"))
    assert writer.read(conversation("a", "b")) is not None
    assert writer.read(conversation("a", "b", system="s")) is None
    writer.close("a file")
    assert (
        "left out 1 of 2 conversations of a file: the teacher's chat template says: no system" in caplog.text
    )


def test_a_template_that_takes_none_ends_the_run() -> None:
    writer = ChatWriter(chat_tokenizer(STRICT))
    for _ in range(63):
        writer.read(conversation("a", "b", system="s"))
    with pytest.raises(InputError, match="of 64 it takes none: no system"):
        writer.read(conversation("a", "b", system="s"))
    few = ChatWriter(chat_tokenizer(STRICT))
    few.read(conversation("a", system="s"))
    with pytest.raises(InputError, match="of 1 it takes none"):
        few.close("a file")


def test_real_conversations_are_written_as_the_template_has_them(real: Path) -> None:
    rows = json.loads((real / "conversations.json").read_text())[:60]
    tokenizer, writer = chat_tokenizer(CHATML), ChatWriter(chat_tokenizer(CHATML))
    roles = {"human": "user", "gpt": "assistant"}
    for row, found in zip(rows, contents_of_rows(rows, "conversations"), strict=True):
        turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        assert isinstance(found, Conversation)
        text = writer.text(found)
        assert text == tokenizer.apply_chat_template(turns, tokenize=False)
        said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        assert [text[start:end] for start, end in writer.answers(found)] == [f"{a}<|im_end|>" for a in said]


def test_masks_of_the_template_itself_agree(real: Path) -> None:
    del real
    tokenizer: PreTrainedTokenizerFast = chat_tokenizer(MARKED)
    said = conversation("über", "größer", "a", "b")
    marked = tokenizer.apply_chat_template(
        list(said.messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    text = ChatWriter(tokenizer).text(said)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = ChatWriter(tokenizer).answers(said)
    inside = [any(s <= start < e for s, e in spans) for start, _ in encoded["offset_mapping"]]
    assert inside == [bool(one) for one in marked["assistant_masks"]]  # type: ignore[call-overload, index]


@pytest.mark.slow
def test_the_template_of_a_real_model(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    writer, said = ChatWriter(tokenizer), conversation("a", "b", "c", "d")
    text = writer.text(said)
    assert text == tokenizer.apply_chat_template(list(said.messages), tokenize=False)
    assert [text[start:end] for start, end in writer.answers(said)] == ["b<|im_end|>", "d<|im_end|>"]
