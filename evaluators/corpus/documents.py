"""Documents: named texts and conversations, from rows, lines of a file, and Python's standard library.

A document's name decides its split (``blocks.split_of``), so the name must not depend on where the text is
stored.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from evaluators.corpus.conversations import Conversation, Row, conversation_format, pair_format
from space.input_error import InputError

_TEXT_COLUMNS = ("text", "content")
#: Folders of the standard library that are left out: installed packages, byte code, repetitive generated
#: tables, and tests, which not every distribution ships.
_SKIPPED_FOLDERS = frozenset(
    {
        *("site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"),
        *("test", "tests", "idle_test", "data"),
    }
)
_SHORTEST_MODULE = 200
_WINDOW_CHARACTERS = 1 << 25
#: A document ends at the first blank line after this many characters, so that a story or section is
#: rarely cut.
_DOCUMENT_CHARACTERS = 4096
#: A text with fewer such documents is cut into shorter ones, since calibration and validation get one in
#: 20 each; but none shorter than about a paragraph.
_FEWEST_DOCUMENTS = 160
_SHORTEST_DOCUMENT = 256
#: Without a blank line, a document ends at the first line end after this many times its length.
_LONGEST_TIMES = 2


@dataclass(frozen=True)
class Document:
    """A text or a conversation, and a name for it that is the same on every machine."""

    name: str
    text: str
    """Empty if it is a conversation, which the teacher's chat template makes text of."""
    conversation: Conversation | None = None

    @classmethod
    def unnamed(cls, content: str | Conversation) -> Document:
        """Make a document whose name is its content's SHA-256, so that copies fall into the same split.

        Lone surrogates, which JSON allows and UTF-8 does not, become question marks.
        """
        encoded = str(content).encode(errors="replace")
        name = hashlib.sha256(encoded).hexdigest()
        return cls(name, encoded.decode()) if isinstance(content, str) else cls(name, "", content)

    @property
    def characters(self) -> int:
        """About how long it is."""
        return len(self.text) if self.conversation is None else len(str(self.conversation))


def in_hash_order(documents: Iterable[Document], window: int = _WINDOW_CHARACTERS) -> Iterator[Document]:
    """Shuffle documents in the same way on every machine: sort them by the hashes of their names.

    A text is rarely read to its end, and neighbouring documents (modules of a package, pages of a site) are
    rarely independent, so its beginning alone would be a biased sample.

    Args:
        documents: in any order; the iterable may be endless.
        window: how many characters to collect before they are sorted and yielded.

    Yields:
        The documents; of copies (documents with the same name) in a window only the first.
    """
    held: list[Document] = []
    characters = 0
    for document in documents:
        held.append(document)
        characters += document.characters
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


def contents_of_rows(rows: Iterable[Row], id: str) -> Iterator[str | Conversation]:
    """Yield the texts or conversations of a data set's rows, in order; rows without any are left out.

    What rows hold is told by the columns of the first one, in this order: a whole conversation, a text, a
    question with its answer.

    Args:
        rows: the data set; each row maps columns to values.
        id: the user's name for it.

    Raises:
        InputError: no columns that are known hold text or conversations, or a row holds something else.
    """
    remaining = iter(rows)
    first = next(remaining, None)
    if first is None:
        return
    column = next((name for name in _TEXT_COLUMNS if _may_be_text(first, name)), None)
    form = conversation_format(first) or (pair_format(first) if column is None else None)
    if form is None and column is None:
        raise _unknown(list(first), id)
    for number, row in enumerate(chain([first], remaining), start=1):
        content = _text(row, column or "", number, id) if form is None else form.conversation(row, number, id)
        if content is not None:
            yield content


def _may_be_text(first: Row, name: str) -> bool:
    # The first row may have no text; its column then counts by name.
    return name in first and (first[name] is None or isinstance(first[name], str))


def _text(row: Row, column: str, number: int, id: str) -> str | None:
    text = row.get(column)
    if text is not None and not isinstance(text, str):
        raise InputError(
            f"every row of {id} has to have a string in the column {column}",
            f"row {number} has {text!r:.60}",
            "Mend that row, or leave it out",
        )
    return text if text and not text.isspace() else None


def _unknown(columns: list[str], id: str) -> InputError:
    return InputError(
        "a row has to have a text (text or content), a conversation (messages or conversations), or both "
        "sides of one (prompt and completion or chosen, instruction and output, question and answer)",
        f"{id} has the columns {', '.join(columns)}",
        "Rename the column that holds the text to text",
    )


def standard_library() -> Iterator[Document]:
    """Yield the installed Python's standard library, one document per module, sorted by name.

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
        if len(text) >= _SHORTEST_MODULE:
            yield Document(name.as_posix(), text)


def document_length(size: int) -> int:
    """Return after how many characters (256 to 4096) a document may end, in a text of ``size`` bytes."""
    return min(_DOCUMENT_CHARACTERS, max(_SHORTEST_DOCUMENT, size // _FEWEST_DOCUMENTS))


def documents_of_lines(lines: Iterable[str], length: int = _DOCUMENT_CHARACTERS) -> Iterator[str]:
    """Group consecutive lines into documents; concatenated, they give the text unchanged.

    Args:
        lines: the text's lines, line ends included.
        length: the number of characters after which a document may end.

    Yields:
        Documents of at least ``length`` characters that end after a blank line, or of at least twice
        that length that end after any line; the last may be shorter. A text of white space gives none.
    """
    document: list[str] = []
    held, blank, has_text = 0, False, False
    for line in lines:
        ends = held >= _LONGEST_TIMES * length or (blank and held >= length)
        if ends and has_text and not line.isspace():
            yield "".join(document)
            document, held, has_text = [], 0, False
        document.append(line)
        held += len(line)
        blank = line.isspace()
        has_text = has_text or not blank
    if has_text:
        yield "".join(document)
