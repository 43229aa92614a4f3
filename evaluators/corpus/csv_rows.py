"""Rows of a ``.csv`` file, whose first row names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import TextIO

from space.input_error import InputError

#: The csv module's own limit is 131,072 characters, less than a book; it has none that is "no limit".
_LONGEST_FIELD = 2**31 - 1
_LONGEST_NAME = 64


def csv_rows(stream: TextIO, id: str) -> Iterator[dict[str, str]]:
    """Yield the rows as strings by column; a first column without a name, as pandas writes it, is left out.

    Args:
        stream: the text; quoted fields may hold line ends.
        id: the user's name for the file.

    Raises:
        InputError: the first row does not name the columns.
        ValueError: a row has another number of fields than the first, or a quote is not closed.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(stream, strict=True)
    try:
        names = next(reader, None)
        if names is None:
            return
        _refuse_without_names(names, id)
        for fields in reader:
            if fields and len(fields) != len(names):
                raise ValueError(
                    f"the row that ends in line {reader.line_num} has {len(fields)} fields "
                    f"and the header {len(names)}"
                )
            if fields:
                yield {name: field for name, field in zip(names, fields, strict=True) if name}
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _refuse_without_names(names: Sequence[str], id: str) -> None:
    named = names[1:] if len(names) > 1 and not names[0] else names
    if not named or len(set(named)) < len(named) or not all(map(_may_be_name, named)):
        raise InputError(
            "the first row of a .csv file has to name its columns, separated by commas: "
            f"different names of at most {_LONGEST_NAME} characters, no numbers and no sentences",
            f"that of {id} is {','.join(names)!r:.80}",
            "Write the names above it, as text for the only column, or convert it",
        )


def _may_be_name(name: str) -> bool:
    return (
        0 < len(name.strip()) <= _LONGEST_NAME
        and not set("\n\t;|").intersection(name)
        and not name.rstrip().endswith((".", "!", ","))
        and not _is_number(name)
    )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
