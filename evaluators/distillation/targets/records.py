"""Records on disk, one per block: written as they are computed, crash-safe, verified on reading.

A folder holds three files. ``records.bin`` has the payloads. ``index.bin`` has an entry of 32 bytes per
block: where its record lies, and the checksums of its payload and of its tokens. ``header.json`` describes
the source of all records. An entry is written after its payload, and every checksum is compared before a
record is used, so that no order of writes to the disk can make a torn record pass.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor

#: Upper bound, in bytes, of the safetensors header and the index entry of a record of up to eight tensors.
OVERHEAD = 1024
_VERSION = 1
#: The dtypes that a record may have, by their names in safetensors.
_TYPES = {
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}


@dataclass(frozen=True)
class _Entry:
    """Offset and length of a record, in bytes, and the CRC-32 of its payload and of its block's tokens."""

    offset: int
    length: int
    payload: int
    tokens: int

    SIZE: ClassVar = 32
    _FIELDS: ClassVar = struct.Struct("<QQII")

    def pack(self) -> bytes:
        fields = self._FIELDS.pack(self.offset, self.length, self.payload, self.tokens)
        return fields + struct.pack("<I4x", zlib.crc32(fields))

    @classmethod
    def unpack(cls, packed: bytes) -> _Entry | None:
        entry = cls(*cls._FIELDS.unpack_from(packed))
        return entry if entry.pack() == packed else None


class Records:
    """The records in a folder, all from one source.

    Args:
        folder: created if missing.
        source: describes in JSON what the records are computed from; records of another source are deleted.
    """

    def __init__(self, folder: Path, source: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._wanted_header = json.dumps({"version": _VERSION, **source}, indent=1, sort_keys=True)
        self._entries: dict[int, _Entry] = {}
        self._end = 0
        self._data = self._open("records.bin")
        self._index = self._open("index.bin")

    def _open(self, name: str) -> int:
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other writers, and read the index that they left.

        On entry the folder is emptied if its header is torn or of another source, and torn ends of files are
        cut off. Do not nest.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._header() != self._wanted_header:
                self._clear()
            self._read_index()
            yield

    def has(self, number: int, tokens: Tensor) -> bool:
        """Return whether the index has block ``number`` with these (T,) tokens; the payload is not read.

        Args:
            number: number of the block.
            tokens: any numbers of 32 bits that stand for what the record is of.
        """
        entry = self._entries.get(number)
        return entry is not None and entry.tokens == _checksum(tokens)

    def read(self, number: int, tokens: Tensor) -> dict[str, Tensor] | None:
        """Return the record of block ``number``; None if it is missing, corrupt, or of other (T,) tokens."""
        if not self.has(number, tokens):
            return None
        entry = self._entries[number]
        payload = torch.empty(entry.length, dtype=torch.uint8)
        content = payload.numpy().data
        whole = os.preadv(self._data, [content], entry.offset) == entry.length
        return _tensors(payload) if whole and zlib.crc32(content) == entry.payload else None

    def write(self, number: int, tokens: Tensor, record: dict[str, Tensor]) -> None:
        """Write the record of block ``number``, replacing an earlier one; only while ``locked``.

        Raises:
            OSError: the disk is full; all other records are unchanged.
        """
        payload = save(record)
        old = self._entries.get(number)
        fits = old is not None and len(payload) <= old.length
        offset = old.offset if old is not None and fits else self._end
        entry = _Entry(offset, len(payload), zlib.crc32(payload), _checksum(tokens))
        _write(self._data, payload, offset)
        _write(self._index, entry.pack(), number * _Entry.SIZE)
        self._entries[number] = entry
        self._end = max(self._end, offset + len(payload))

    @property
    def size(self) -> int:
        """Bytes of all records and their index entries; other files in the folder are not counted."""
        return sum(entry.length + _Entry.SIZE for entry in self._entries.values())

    def sync(self) -> None:
        """Flush everything written to the disk.

        Raises:
            OSError: the disk is full, which some file systems report only here.
        """
        os.fsync(self._data)
        os.fsync(self._index)

    def _header(self) -> str | None:
        try:
            return (self.folder / "header.json").read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def _clear(self) -> None:
        header, new = self.folder / "header.json", self.folder / "header.json.new"
        header.unlink(missing_ok=True)
        os.ftruncate(self._index, 0)
        os.ftruncate(self._data, 0)
        new.write_text(self._wanted_header)
        os.replace(new, header)

    def _read_index(self) -> None:
        """Read the index; blank entries without a record, lest they come to point at a later one."""
        size, packed = os.fstat(self._data).st_size, _read_all(self._index)
        whole = len(packed) - len(packed) % _Entry.SIZE
        os.ftruncate(self._index, whole)
        self._entries = {}
        for at in range(0, whole, _Entry.SIZE):
            packed_entry = packed[at : at + _Entry.SIZE]
            entry = _Entry.unpack(packed_entry)
            if entry is not None and entry.offset + entry.length <= size:
                self._entries[at // _Entry.SIZE] = entry
            elif any(packed_entry):
                _write(self._index, bytes(_Entry.SIZE), at)
        self._end = max((entry.offset + entry.length for entry in self._entries.values()), default=0)
        os.ftruncate(self._data, self._end)


def _tensors(payload: Tensor) -> dict[str, Tensor]:
    """Read a safetensors payload as views; the library's reader copies, which takes longer than reading."""
    start = 8 + int.from_bytes(payload[:8].numpy().tobytes(), "little")
    header = json.loads(payload[8:start].numpy().tobytes())
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        tensors[name] = payload[first:last].view(_TYPES[entry["dtype"]]).view(entry["shape"])
    return tensors


def _checksum(tokens: Tensor) -> int:
    return zlib.crc32(tokens.to(torch.int32).numpy().tobytes())


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _write(descriptor: int, content: bytes, offset: int) -> None:
    """Write all bytes: the system may write a part, and reports an error only on the next call."""
    left = memoryview(content)
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done
