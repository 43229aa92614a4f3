"""Which column of a dataset is its text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from datasets import Features, Value

from space.input_error import InputError

_NAMES = ("text", "content")
_STRINGS = {"string", "large_string", "string_view"}


def texts_of(rows: Iterable[Mapping[str, Any]], id: str, features: Features | None = None) -> Iterator[str]:
    """The texts of a dataset's rows, in order; rows without text are left out.

    Args:
        rows: the dataset, one mapping from column to value a row.
        id: what the user calls it.
        features: the types of its columns, where they are known; else the first row tells.

    Raises:
        InputError: no column of strings, several and none is called text or content, or a row with
            something else in it.
    """
    remaining = iter(rows)
    first = next(remaining, None)
    if first is None:
        return
    column = _text_column(_string_columns(first, features), list(first), id)
    for number, row in enumerate(chain([first], remaining), start=1):
        text = row.get(column)
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"every row of {id} has to have a string in the column {column}",
                f"row {number} has {text!r:.60}",
                "Mend that row, or leave it out",
            )
        if text and not text.isspace():
            yield text


def _string_columns(first: Mapping[str, Any], features: Features | None) -> list[str]:
    if features is None:
        # A first row may lack its text; that decides nothing about the column.
        return [
            name
            for name, value in first.items()
            if isinstance(value, str) or (value is None and name in _NAMES)
        ]
    return [name for name, kind in features.items() if isinstance(kind, Value) and kind.dtype in _STRINGS]


def _text_column(strings: list[str], columns: list[str], id: str) -> str:
    for name in _NAMES:
        if name in strings:
            return name
    if len(strings) == 1:
        return strings[0]
    raise InputError(
        "the text has to be in a column of strings called text or content, or in the only such column",
        f"{id} has the columns {', '.join(columns)}, and of strings {', '.join(strings) or 'none'}",
        "Rename the column that holds the text to text",
    )
