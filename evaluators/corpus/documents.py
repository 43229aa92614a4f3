"""Documents: texts with a name that stays the same between runs, from columns, from paragraphs, from Python.

A document's name decides its split (see ``split``), so the name must not depend on where the
text happens to lie on this machine.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Features, Value

from space.input_error import InputError

_NAMES = ("text", "content")
_STRINGS = {"string", "large_string", "string_view"}
#: Folders of the standard library that are not source text worth learning: installed packages,
#: byte code, generated tables that repeat each other, and tests, which not every distribution ships.
_SKIPPED_FOLDERS = frozenset(
    {
        *("site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"),
        *("test", "tests", "idle_test", "data"),
    }
)
_SHORTEST_CHARACTERS = 200
_WINDOW_CHARACTERS = 1 << 25
#: A document ends at the first blank line after this many characters, so that what belongs
#: together (a story, a section) is rarely cut.
_LENGTH = 4096
#: A text with less than this many such documents is cut shorter, since one in 20 each has to go to
#: calibration and validation; but not below a paragraph or so.
_FEWEST = 160
_SHORTEST_LENGTH = 256
#: Where no blank line comes, a document ends with the line after so many times its length.
_PATIENCE = 2


@dataclass(frozen=True)
class Document:
    """A text and a name for it that is the same on every machine."""

    name: str
    text: str

    @classmethod
    def unnamed(cls, text: str) -> Document:
        """A document whose name is its content's SHA-256, so that copies are in one split.

        Halves of surrogate pairs, which JSON can hold and UTF-8 cannot, become question marks.
        """
        content = text.encode(errors="replace")
        return cls(hashlib.sha256(content).hexdigest(), content.decode())


def in_hash_order(documents: Iterable[Document], window: int = _WINDOW_CHARACTERS) -> Iterator[Document]:
    """The documents, shuffled the same way on every machine: sorted by the hashes of their names.

    A text is seldom read to its end, and neighbours are seldom independent (modules of a package,
    pages of a site), so that its beginning alone would be a skewed sample.

    Args:
        documents: in any order; endless is fine.
        window: characters to read before sorting and handing on.

    Yields:
        Of documents next to each other with the same name, which are copies, only the first.
    """
    held: list[Document] = []
    characters = 0
    for document in documents:
        held.append(document)
        characters += len(document.text)
        if characters >= window:
            yield from _hash_sorted(held)
            held, characters = [], 0
    yield from _hash_sorted(held)


def _hash_sorted(documents: list[Document]) -> Iterator[Document]:
    last = None
    for document in sorted(documents, key=lambda document: hashlib.sha256(document.name.encode()).digest()):
        if document.name != last:
            yield document
        last = document.name


def texts_of_rows(
    rows: Iterable[Mapping[str, Any]], id: str, features: Features | None = None
) -> Iterator[str]:
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


def standard_library() -> Iterator[Document]:
    """The installed Python's standard library, one document a module, in the order of the names.

    Tests, modules that are not UTF-8 and modules of fewer than 200 characters are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if _SKIPPED_FOLDERS.intersection(name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if len(text) >= _SHORTEST_CHARACTERS:
            yield Document(name.as_posix(), text)


def document_length(size: int) -> int:
    """After how many characters a document of a text of so many bytes may end: 256 to 4096."""
    return min(_LENGTH, max(_SHORTEST_LENGTH, size // _FEWEST))


def documents_of_lines(lines: Iterable[str], length: int = _LENGTH) -> Iterator[str]:
    """Group consecutive lines into documents; joined, the documents are the text unchanged.

    Args:
        lines: the text's lines, line ends included.
        length: characters after which a document may end.

    Yields:
        Documents of at least ``length`` characters that end after a blank line, or of at least two
        times that which end after any line; the last one may be shorter. A text of white space has none.
    """
    document: list[str] = []
    held, blank, written = 0, False, False
    for line in lines:
        ends = held >= _PATIENCE * length or (blank and held >= length)
        if ends and written and not line.isspace():
            yield "".join(document)
            document, held, written = [], 0, False
        document.append(line)
        held += len(line)
        blank = line.isspace()
        written = written or not blank
    if written:
        yield "".join(document)
