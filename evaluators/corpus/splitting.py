"""Cut what is too long for one document: a book in one row, a file of one huge line."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import TextIO

#: Calibration and validation get one document in 20 each; of so many, each gets some.
_FEWEST_PIECES = 160
_SHORTEST_LIMIT = 1 << 12
_LONGEST_LIMIT = 1 << 20
_LIMIT_OF_UNKNOWN_SIZE = 1 << 16
#: Where a text may be cut, best first; each match belongs to what stands before it.
_ENDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\n[^\S\n]*\n+",  # a paragraph, which ends in a blank line
        r"\n",
        r"[.!?…][\"'”’»)\]]*\s+|[。！？]",  # a sentence
        r"\s+",
    )
)


def row_limit(size: int | None) -> int:
    """Return after how many characters a row's text is cut, so that few but long ones fill all splits.

    Args:
        size: the bytes of the whole text; None if that is not known.
    """
    if size is None:
        return _LIMIT_OF_UNKNOWN_SIZE
    return min(_LONGEST_LIMIT, max(_SHORTEST_LIMIT, size // _FEWEST_PIECES))


def split_long(text: str, limit: int) -> Iterator[str]:
    """Cut a text that is longer than ``limit`` characters; concatenated, the pieces give it unchanged.

    A piece ends, in the second half of what it may hold, at the last end of a paragraph; if there is none, of
    a line; else of a sentence; else at the last space; else at the limit.

    Yields:
        Pieces of 1 to ``limit`` characters, all but the last of more than half as many; none for an empty
        text.
    """
    start = 0
    while len(text) - start > limit:
        end = _piece_end(text, start + limit // 2, start + limit)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _piece_end(text: str, earliest: int, latest: int) -> int:
    for end in _ENDS:
        if last := deque(end.finditer(text, earliest, latest), maxlen=1):
            return last[0].end()
    return latest


def bounded_lines(stream: TextIO, limit: int) -> Iterator[str]:
    """Yield the lines of a stream, line ends included; lines longer than ``limit`` are cut as they are read.

    At most about twice the limit is held, so that a file of one line can be of any size.
    """
    held = ""
    while piece := stream.readline(limit):
        held += piece
        pieces = list(split_long(held, limit))
        held = "" if held.endswith("\n") else pieces.pop()
        yield from pieces
    yield from split_long(held, limit)
