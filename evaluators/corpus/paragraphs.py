"""Plain text to documents: a text file says where its paragraphs end, but not its documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

#: A document ends at the first blank line after this many characters, so that what belongs
#: together (a story, a section) is rarely cut ...
_SHORTEST_CHARACTERS = 4096
#: ... and at the end of a line after this many, for texts without blank lines.
_LONGEST_CHARACTERS = 16384


def documents_of(lines: Iterable[str]) -> Iterator[str]:
    """Group consecutive lines into documents; joined, the documents are the text unchanged.

    Args:
        lines: the text's lines, line ends included.

    Yields:
        Documents of at least 4096 characters that end after a blank line, or of at least 16384
        that end after any line; the last one may be shorter. A text of white space has none.
    """
    document: list[str] = []
    held, blank, written = 0, False, False
    for line in lines:
        ends = held >= _LONGEST_CHARACTERS or (blank and held >= _SHORTEST_CHARACTERS)
        if ends and written and not line.isspace():
            yield "".join(document)
            document, held, written = [], 0, False
        document.append(line)
        held += len(line)
        blank = line.isspace()
        written = written or not blank
    if written:
        yield "".join(document)
