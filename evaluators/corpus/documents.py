"""Documents: texts with a name that stays the same between runs, and the order to read them in.

A document's name decides its split (see ``split``), so the name must not depend on where the
text happens to lie on this machine.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
