"""Rows of every known form become the same messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from evaluators.corpus.conversations import Conversation
from evaluators.corpus.documents import contents_of_rows
from space.input_error import InputError

ASKED = {"role": "user", "content": "Is it far?"}
ANSWERED = {"role": "assistant", "content": "No."}
BOTH = (ASKED, ANSWERED)


def read(*rows: Mapping[str, Any]) -> list[str | Conversation]:
    return list(contents_of_rows(rows, "a file"))


def refused(*rows: Mapping[str, Any]) -> str:
    with pytest.raises(InputError) as refusal:
        read(*rows)
    return str(refusal.value)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": list(BOTH)},
        {"messages": list(BOTH), "prompt": "Is it far?", "source": "x"},
        {"messages": list(BOTH), "text": "another rendering"},
        {"messages": [ASKED, {**ANSWERED, "content": [{"type": "text", "text": "N"}, {"text": "o."}]}]},
        {"messages": [{**ASKED, "name": None}, {**ANSWERED, "tool_calls": None}]},
        {"conversations": [{"from": "human", "value": "Is it far?"}, {"from": "gpt", "value": "No."}]},
        {"conversations": list(BOTH)},
        {"conversation": list(BOTH)},
        {"prompt": "Is it far?", "completion": "No."},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": "Is it far?", "chosen": "No.", "rejected": "Yes."},
        {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": []},
        {"prompt": "Is it far?", "chosen": list(BOTH), "rejected": list(BOTH)},
        {"chosen": list(BOTH), "rejected": list(BOTH)},
        {"instruction": "Is it far?", "input": "", "output": "No."},
        {"instruction": "Is it far?", "output": "No."},
        {"question": "Is it far?", "answer": "No.", "id": "7"},
    ],
)  # fmt: skip
def test_the_same_conversation_in_every_form(row: Mapping[str, Any]) -> None:
    assert read(row) == [Conversation(BOTH)]


def test_an_input_follows_its_instruction_after_a_blank_line() -> None:
    (found,) = read({"instruction": "Translate.", "input": "ja", "output": "yes", "system": "Be brief."})
    assert isinstance(found, Conversation)
    assert [message["content"] for message in found.messages] == ["Be brief.", "Translate.\n\nja", "yes"]
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant"]


def test_what_a_template_may_read_besides_comes_along() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    row = {
        "messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call], "thinking": "hm"}],
        "tools": '[{"name": "f"}]',
        "chat_template_kwargs": {"enable_thinking": False, "other": None},
    }
    (found,) = read(row)
    assert isinstance(found, Conversation)
    assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call], "thinking": "hm"}
    assert found.tools == ({"name": "f"},)
    assert found.switches == {"enable_thinking": False}


def test_text_comes_before_a_question_with_its_answer() -> None:
    assert read({"question": "a", "answer": "b", "text": "whole"}) == ["whole"]


def test_rows_in_which_nothing_is_said_are_left_out() -> None:
    nothing: list[Mapping[str, Any]] = [
        {"messages": []},
        {"messages": None},
        {"messages": [{"role": "user", "content": " \n"}]},
    ]
    assert read({"messages": list(BOTH)}, *nothing) == [Conversation(BOTH)]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"messages": "Is it far?"}, "row 2 does not: messages is 'Is it far?', not a list of messages"),
        ({"messages": [{"content": "a"}]}, "row 2 does not: a message has no role"),
        ({"messages": [{"from": "narrator", "value": "a"}]}, "a message is from 'narrator'; known are human"),
        ({"messages": [{"role": "user", "content": 3}]}, "a message's content is 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "a part of kind 'image'; only text",
        ),
    ],
)
def test_a_row_that_breaks_its_promise_is_named(row: Mapping[str, Any], found: str) -> None:
    message = refused({"messages": list(BOTH)}, row)
    assert "every row of a file has to hold a conversation in messages" in message
    assert found in message


def test_names_tell_conversations_apart_and_not_where_they_lie() -> None:
    assert str(Conversation(BOTH)) == str(Conversation(tuple(dict(reversed(m.items())) for m in BOTH)))
    assert str(Conversation(BOTH)) != str(Conversation(BOTH, switches={"enable_thinking": True}))
