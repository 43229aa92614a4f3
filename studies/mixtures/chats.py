"""Conversations for the study: real ones, and questions about books that the books answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

Turns = list[dict[str, str]]
#: Of a book: characters of the paragraph that is quoted, and of its continuation.
_QUOTED, _ANSWERED = 400, 600
_ASKED = (
    "Go on with this passage:\n\n{}",
    "What follows in the book after these lines?\n\n{}",
    "Here is the beginning of a paragraph. Write the rest.\n\n{}",
)


def real_chats(path: Path) -> list[Turns]:
    """Read conversations in the form of ``conversations`` with ``from`` and ``value``."""
    roles = {"human": "user", "gpt": "assistant"}
    return [
        [{"role": roles[turn["from"]], "content": turn["value"]} for turn in one["conversations"]]
        for one in json.loads(path.read_text(encoding="utf-8"))
    ]


def chats_of_books(lines: Iterable[str]) -> Iterator[Turns]:
    """Yield for each book, a line of JSON, a question that quotes it, answered by what follows there.

    Short ones yield none.
    """
    for number, line in enumerate(lines):
        text = " ".join(json.loads(line)["text"].split())
        if len(text) < _QUOTED + _ANSWERED:
            continue
        quoted, rest = text[:_QUOTED], text[_QUOTED : _QUOTED + _ANSWERED]
        answer = rest[: rest.rfind(".") + 1] or rest
        asked = _ASKED[number % len(_ASKED)].format(quoted.rsplit(" ", 1)[0])
        yield [{"role": "user", "content": asked}, {"role": "assistant", "content": answer.strip()}]


def write_chats(chats: list[Turns], path: Path) -> Path:
    """Write conversations as JSON lines with ``messages``; return the file."""
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in chats), encoding="utf-8")
    return path
