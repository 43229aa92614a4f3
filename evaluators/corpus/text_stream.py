"""Open a file of text as it is: compressed or not, in UTF-8 or as its byte-order mark says."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

import pyarrow

from space.input_error import InputError

#: The mark of UTF-32 begins with that of UTF-16, so it comes first.
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LONGEST_MARK = 4


@contextmanager
def open_text(file: Path) -> Iterator[TextIO]:
    r"""Open a text file, ``.gz`` and ``.zst`` decompressed as they are read; all line ends become ``\n``.

    Raises:
        InputError: it begins as UTF-16 does, but without the mark.
    """
    with _decompressed(file) as stream:
        yield io.TextIOWrapper(stream, encoding=_encoding(stream, file))


def _decompressed(file: Path) -> io.BufferedReader:
    match file.suffix.lower():
        case ".gz":
            return cast(io.BufferedReader, gzip.open(file))  # has ``peek`` as well
        case ".zst":
            return io.BufferedReader(cast(io.RawIOBase, pyarrow.CompressedInputStream(str(file), "zstd")))
        case _:
            return file.open("rb")


def _encoding(stream: io.BufferedReader, file: Path) -> str:
    head = stream.peek(_LONGEST_MARK)[:_LONGEST_MARK]
    for mark, encoding in _ENCODINGS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        raise unknown_encoding(file, f"it begins with the bytes {head!r}", "UTF-16LE")
    return "utf-8"


def unknown_encoding(file: Path, found: str, likely: str = "latin1") -> InputError:
    """Return the refusal of a file whose bytes are no text; ``likely`` is what they may be."""
    return InputError(
        "text has to be UTF-8, or UTF-16 with its byte-order mark",
        f"{file} is neither: {found}",
        f"Convert it, if it is {likely} by `iconv -f {likely} -t utf-8`",
    )
