"""Conversations in the rows of a data set: recognised by their columns, brought into one form.

The form is that of chat templates: messages with a role and a string as content, and whatever else a template
may read of them (tool calls, reasoning). What stands in a row is neither guessed nor repaired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from space.input_error import InputError

Row = Mapping[str, Any]
Message = dict[str, Any]

#: Columns of whole conversations, most usual first.
_WHOLE = ("messages", "conversations", "conversation")
#: ShareGPT's names of those who speak, as chat templates have them.
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}


@dataclass(frozen=True)
class Conversation:
    """Messages and what else a chat template is given."""

    messages: tuple[Message, ...]
    """Each with ``role`` and ``content``, a string, and further fields as the row has them."""
    tools: tuple[Any, ...] = ()
    """Descriptions of functions, as JSON schemas."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the template, such as ``enable_thinking``."""

    def __str__(self) -> str:
        return json.dumps([self.messages, self.tools, self.switches], ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class ConversationFormat:
    """One way in which rows hold conversations."""

    columns: tuple[str, ...]
    """Columns that have to be there."""
    read: Callable[[Row], Sequence[Message]]
    """Reads the messages of a row; raises ValueError with what is wrong with it."""

    def conversation(self, row: Row, number: int, id: str) -> Conversation | None:
        """Return the conversation of a row; None if nothing is said in it.

        Args:
            row: maps columns to values.
            number: of the row, from 1.
            id: the user's name for the data set.

        Raises:
            InputError: the row does not hold what its columns promise.
        """
        try:
            messages = tuple(self.read(row))
            if not any(message["content"].strip() or message.get("tool_calls") for message in messages):
                return None
            return Conversation(messages, _tools(row), _switches(row))
        except ValueError as error:
            raise InputError(
                f"every row of {id} has to hold a conversation in {' and '.join(self.columns)}",
                f"row {number} does not: {error}",
                "Mend that row, or leave it out",
            ) from None


def conversation_format(first: Row) -> ConversationFormat | None:
    """Return how rows like the first one hold a conversation whole; None if they do not.

    Args:
        first: the first row.
    """
    for column in _WHOLE:
        if _is_turns(first.get(column)):
            return _whole(column)
    return None


def pair_format(first: Row) -> ConversationFormat | None:
    """Return how rows like the first one hold a question and an answer in columns; None if they do not.

    Args:
        first: the first row; a preferred answer (``chosen``) may hold the whole conversation.
    """
    found = [one for one in _PAIRS if all(column in first for column in one.columns)]
    if "chosen" in first and "prompt" not in first and _is_turns(first["chosen"]):
        found.append(_whole("chosen"))
    return found[0] if found else None


def _whole(column: str) -> ConversationFormat:
    return ConversationFormat((column,), lambda row: _messages(row.get(column), column))


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value)


def _messages(turns: Any, column: str) -> list[Message]:
    if turns is None:
        return []
    if not _is_turns(turns):
        raise ValueError(f"{column} is {turns!r:.60}, not a list of messages")
    return [_message(turn) for turn in turns]


def _message(turn: Mapping[str, Any]) -> Message:
    # datasets fills in the fields that other rows have with None.
    turn = {name: value for name, value in turn.items() if value is not None}
    if "from" in turn:
        return _sharegpt(turn)
    role = turn.get("role")
    if not isinstance(role, str):
        raise ValueError(f"a message has no role: {dict(turn)!r:.60}")
    return {**turn, "role": role, "content": _content(turn.get("content", ""))}


def _sharegpt(turn: Mapping[str, Any]) -> Message:
    role, value = _ROLES.get(str(turn["from"]).lower()), turn.get("value", "")
    if role is None:
        raise ValueError(f"a message is from {turn['from']!r}; known are {', '.join(_ROLES)}")
    return {"role": role, "content": _content(value)}


def _content(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of parts of which all are text."""
    if isinstance(content, str):
        return _utf8(content)
    if not isinstance(content, list):
        raise ValueError(f"a message's content is {content!r:.60}")
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text" or not isinstance(text, str):
            raise ValueError(f"a message has a part of kind {kind!r}; only text can be read")
        parts.append(text)
    return _utf8("".join(parts))


def _utf8(text: str) -> str:
    """Make question marks of lone surrogates, which JSON allows and UTF-8 does not."""
    return text.encode(errors="replace").decode()


def _tools(row: Row) -> tuple[Any, ...]:
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = json.loads(tools) if tools.strip() else None
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"tools is {tools!r:.60}, not a list")
    return tuple(tools or ())


def _switches(row: Row) -> dict[str, Any]:
    switches = row.get("chat_template_kwargs") or {}
    if not isinstance(switches, Mapping):
        raise ValueError(f"chat_template_kwargs is {switches!r:.60}, not an object")
    return {name: value for name, value in switches.items() if value is not None}


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{column} is {value!r:.60}, not a string")
    return _utf8(value)


def _asked(row: Row, question: str, answer: str) -> list[Message]:
    """Return the messages of two columns, each a string or a list of messages, and of ``system``."""
    asked, answered = (
        _messages(row[column], column)
        if _is_turns(row.get(column))
        else [{"role": role, "content": _text(row, column)}]
        for column, role in ((question, "user"), (answer, "assistant"))
    )
    if answered[: len(asked)] == asked and len(answered) > len(asked):
        asked = []  # the preferred answer repeats what was asked
    system = _text(row, "system")
    return [*([{"role": "system", "content": system}] if system else []), *asked, *answered]


def _instructed(row: Row) -> list[Message]:
    asked = "\n\n".join(part for column in ("instruction", "input") if (part := _text(row, column)))
    return _asked({**row, "instruction": asked}, "instruction", "output")


def _pair(question: str, answer: str) -> ConversationFormat:
    return ConversationFormat((question, answer), lambda row: _asked(row, question, answer))


#: Of several, the first whose columns are all there.
_PAIRS = (
    _pair("prompt", "chosen"),
    _pair("prompt", "completion"),
    ConversationFormat(("instruction", "output"), _instructed),
    _pair("question", "answer"),
)
