"""What gzip and xz make of a text, on their own and with other text to refer back to."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Sequence

#: From data to the number of bytes it is compressed to.
Compressor = Callable[[bytes], int]

#: The dictionary of `xz -9`.
_XZ_DICTIONARY_BYTES = 64 * 2**20


def gzip_bytes(data: bytes) -> int:
    """Size in bytes after `gzip -9`."""
    return len(gzip.compress(data, compresslevel=9, mtime=0))


def xz_bytes(data: bytes) -> int:
    """Size in bytes after `xz -9e`, with a dictionary that holds all of the data."""
    lzma2 = {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": max(_XZ_DICTIONARY_BYTES, len(data)),
    }
    return len(lzma.compress(data, filters=[lzma2]))


def separately(compressor: Compressor, documents: Sequence[bytes]) -> int:
    """Size in bytes of the documents, each compressed alone."""
    return sum(map(compressor, documents))


def together(compressor: Compressor, documents: Sequence[bytes]) -> int:
    """Size in bytes of the documents compressed as one, end to end."""
    return compressor(b"".join(documents))


def after(compressor: Compressor, seen: Sequence[bytes], documents: Sequence[bytes]) -> int:
    """Bytes that the documents add to the compressed size of the ``seen`` ones before them."""
    return together(compressor, [*seen, *documents]) - together(compressor, seen)
