"""Tables whose rows are the lines of one text, as WikiText's are: recognise them and restore the lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from datasets import Features, Value

_ROWS_LOOKED_AT = 1000
_FEWEST_ROWS = 16
_FEWEST_BLANK = 0.1


def recognise_lines(
    rows: Iterable[Mapping[str, Any]], features: Features
) -> tuple[bool, Iterator[Mapping[str, Any]]]:
    r"""Say whether rows are the lines of one text, by the first 1,000 of them, and give all rows back.

    They are if text is the only column, a string in every row; there are at least 16 rows; no string has a
    line end before its last character; at least one in ten is blank; and of the others all end in a line end
    or none does. Documents are told apart by the blank rows: those of a text are its blank lines, while a
    document is rarely empty.
    """
    kind = features.get("text")
    if len(features) != 1 or not isinstance(kind, Value) or kind.dtype not in ("string", "large_string"):
        return False, iter(rows)
    remaining = iter(rows)
    head: list[Mapping[str, Any]] = []
    for row in islice(remaining, _ROWS_LOOKED_AT):
        head.append(row)
        if row["text"] is None or "\n" in row["text"][:-1]:
            return False, chain(head, remaining)
    return _are_lines([row["text"] for row in head]), chain(head, remaining)


def _are_lines(texts: Sequence[str]) -> bool:
    written = [text for text in texts if text and not text.isspace()]
    return (
        len(texts) >= _FEWEST_ROWS
        and len(texts) - len(written) >= _FEWEST_BLANK * len(texts)
        and len({text.endswith("\n") for text in written}) == 1
    )


def lines_of_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines, each with its line end; an empty row is a blank line."""
    for row in rows:
        text = row["text"] or ""
        yield text if text.endswith("\n") else f"{text}\n"
