"""Rows of JSON: one object a line, an array of objects, or an object that holds such an array alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any, TextIO

Row = dict[str, Any]
_DECODER = json.JSONDecoder()
_CHUNK_CHARACTERS = 1 << 20
#: So far before the end of what was read an error may come from the end alone: ``\ud83d\ud8`` is the longest
#: beginning of something that does not parse.
_LONGEST_BEGINNING = 16
#: Lists of objects that belong to one row: the columns of conversations.
_LISTS_OF_ONE_ROW = frozenset(
    {"messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools"}
)


def json_line_rows(stream: TextIO) -> Iterator[Row]:
    """Yield the objects of a ``.jsonl`` file; blank lines are left out.

    Raises:
        ValueError: a line is no JSON object.
    """
    for number, line in enumerate(stream, start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        yield _object(row, f"line {number}")


def json_rows(stream: TextIO) -> Iterator[Row]:
    """Yield the objects of a ``.json`` file, an array of them or one after another as in ``.jsonl``.

    A single object whose only value is a list of objects stands for that list, unless its key is a column of
    conversations. The file is read piece by piece; only such an object is held whole.

    Raises:
        ValueError: the file is no JSON, holds something other than objects, or which list it means is not
            clear.
    """
    values = JsonValues(stream)
    match values.next_character():
        case "[":
            yield from _array(values)
        case "":
            return
        case _:
            first = _object(values.value(), "value 1")
            if values.next_character():
                yield first
                yield from _following(values)
            else:
                yield from _rows_within(first)


def _object(value: object, place: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no JSON object")
    return value


def _following(values: JsonValues) -> Iterator[Row]:
    for number in count(2):
        if not values.next_character():
            return
        yield _object(values.value(), f"value {number}")


def _array(values: JsonValues) -> Iterator[Row]:
    values.skip("[")
    if values.next_character() != "]":
        for number in count(1):
            yield _object(values.value(), f"value {number} of the array")
            if values.next_character() == "]":
                break
            values.skip(",")
    values.skip("]")
    if values.next_character():
        raise ValueError("something follows the array")


def _rows_within(single: Row) -> list[Row]:
    lists = [
        key
        for key, value in single.items()
        if key not in _LISTS_OF_ONE_ROW and isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if not lists:
        return [single]
    if len(single) > 1:
        raise ValueError(
            f"it is one object with {', '.join(single)}; keep the list of rows alone, "
            f"as by `jq .{lists[0]}`, or put the object into an array if it is a row itself"
        )
    return [_object(row, f"value {number} of {lists[0]}") for number, row in enumerate(single[lists[0]], 1)]


class JsonValues:
    """Reads JSON values one after another from a stream that is never held whole."""

    def __init__(self, stream: TextIO, chunk: int = _CHUNK_CHARACTERS) -> None:
        self._stream, self._chunk = stream, chunk
        self._held, self._at, self._dropped = "", 0, 0

    def next_character(self) -> str:
        """Return the next character that is no white space, without taking it; at the end an empty string."""
        while True:
            rest = self._held[self._at : self._at + 1]
            if rest and not rest.isspace():
                return rest
            if rest:
                self._at += 1
            elif not self._read_more():
                return ""

    def skip(self, expected: str) -> None:
        """Take the next character.

        Raises:
            ValueError: it is another one.
        """
        found = self.next_character()
        if found != expected:
            raise ValueError(f"Expecting {expected!r} at {self._place(self._at)}")
        self._at += 1

    def value(self) -> Any:
        """Take the next value.

        Raises:
            ValueError: there is none, or it is no JSON.
        """
        self.next_character()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._held, self._at)
                return value
            except json.JSONDecodeError as error:
                if not self._may_go_on(error) or not self._read_more():
                    place = self._place(min(error.pos, len(self._held)))
                    raise ValueError(f"{error.msg.removesuffix(' at')} at {place}") from error

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos > len(self._held) - _LONGEST_BEGINNING

    def _read_more(self) -> bool:
        # As much again as is left, so that a long value is not parsed anew too often.
        more = self._stream.read(max(self._chunk, len(self._held) - self._at))
        self._dropped += self._at
        self._held, self._at = self._held[self._at :] + more, 0
        return bool(more)

    def _place(self, index: int) -> str:
        return f"character {self._dropped + index + 1}"
