"""Plain text to documents: a text file says where its paragraphs end, but not its documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

#: A document ends at the first blank line after this many characters, so that what belongs
#: together (a story, a section) is rarely cut.
_LENGTH = 4096
#: A text with less than this many such documents is cut shorter, since one in 20 each has to go to
#: calibration and validation; but not below a paragraph or so.
_FEWEST = 160
_SHORTEST_LENGTH = 256
#: Where no blank line comes, a document ends with the line after so many times its length.
_PATIENCE = 2


def document_length(size: int) -> int:
    """After how many characters a document of a text of so many bytes may end: 256 to 4096."""
    return min(_LENGTH, max(_SHORTEST_LENGTH, size // _FEWEST))


def documents_of(lines: Iterable[str], length: int = _LENGTH) -> Iterator[str]:
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
