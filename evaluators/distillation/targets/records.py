"""Records on disk, one a block: written as they come, whole after any interruption, verified on reading.

Three files in a folder: ``records.bin`` with the payloads; ``index.bin`` with an entry of 32 bytes for each
block, which says where its record lies, of which tokens it is, and by which checksum it is known;
``header.json`` with what all of them are of. An entry is written after its payload, and every checksum is
compared before anything is believed: so no order of writes to the disk can make a torn record pass.
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

#: Bytes that a record takes at most besides its tensors, up to eight of them: its safetensors header and
#: its entry in the index.
OVERHEAD = 1024
_VERSION = 1
#: Of the tensors in a record, by their names in safetensors.
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
    """Where a record lies, in bytes, and the CRC-32 of its payload and of the tokens of its block."""

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
    """The records of a folder, of one kind.

    Args:
        folder: made if it is not there.
        about: JSON that says what the records are of; those of anything else are thrown away.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._about = json.dumps({"version": _VERSION, **about}, indent=1, sort_keys=True)
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
        """Hold the folder against other writers, and see what they wrote before.

        On entry a foreign or torn header empties the folder, and torn ends are cut off. Not to be nested.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._header() != self._about:
                self._clear()
            self._survey()
            yield

    def has(self, number: int, tokens: Tensor) -> bool:
        """Whether there is a record of block ``number`` with these (T,) tokens; its payload is not read."""
        entry = self._entries.get(number)
        return entry is not None and entry.tokens == _checksum(tokens)

    def read(self, number: int, tokens: Tensor) -> dict[str, Tensor] | None:
        """The record of block ``number``; None unless it is there, whole, and of these (T,) tokens."""
        if not self.has(number, tokens):
            return None
        entry = self._entries[number]
        payload = torch.empty(entry.length, dtype=torch.uint8)
        content = payload.numpy().data
        whole = os.preadv(self._data, [content], entry.offset) == entry.length
        return _tensors(payload) if whole and zlib.crc32(content) == entry.payload else None

    def write(self, number: int, tokens: Tensor, record: dict[str, Tensor]) -> None:
        """Keep the record of block ``number``, in place of one before; only while ``locked``.

        Raises:
            OSError: the disk is full; all other records are as they were.
        """
        payload = save(record)
        before = self._entries.get(number)
        fits = before is not None and len(payload) <= before.length
        offset = before.offset if before is not None and fits else self._end
        entry = _Entry(offset, len(payload), zlib.crc32(payload), _checksum(tokens))
        _write(self._data, payload, offset)
        _write(self._index, entry.pack(), number * _Entry.SIZE)
        self._entries[number] = entry
        self._end = max(self._end, offset + len(payload))

    @property
    def size(self) -> int:
        """Bytes of all records and of their entries in the index, whatever else lies in the folder."""
        return sum(entry.length + _Entry.SIZE for entry in self._entries.values())

    def sync(self) -> None:
        """Wait until all that was written is on the disk.

        Raises:
            OSError: something did not fit after all.
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
        new.write_text(self._about)
        os.replace(new, header)

    def _survey(self) -> None:
        """Read the index; entries of no record are blanked, so that none comes to point at another's."""
        size, packed = os.fstat(self._data).st_size, _read_all(self._index)
        whole = len(packed) - len(packed) % _Entry.SIZE
        os.ftruncate(self._index, whole)
        self._entries = {}
        for at in range(0, whole, _Entry.SIZE):
            piece = packed[at : at + _Entry.SIZE]
            entry = _Entry.unpack(piece)
            if entry is not None and entry.offset + entry.length <= size:
                self._entries[at // _Entry.SIZE] = entry
            elif any(piece):
                _write(self._index, bytes(_Entry.SIZE), at)
        self._end = max((entry.offset + entry.length for entry in self._entries.values()), default=0)
        os.ftruncate(self._data, self._end)


def _tensors(payload: Tensor) -> dict[str, Tensor]:
    """What ``safetensors`` wrote, as views: its own reader copies, which takes longer than to read."""
    content = 8 + int.from_bytes(payload[:8].numpy().tobytes(), "little")
    header = json.loads(payload[8:content].numpy().tobytes())
    found = {}
    for name, about in header.items():
        first, last = (content + at for at in about["data_offsets"])
        found[name] = payload[first:last].view(_TYPES[about["dtype"]]).view(about["shape"])
    return found


def _checksum(tokens: Tensor) -> int:
    return zlib.crc32(tokens.to(torch.int32).numpy().tobytes())


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _write(descriptor: int, content: bytes, offset: int) -> None:
    """Write all of it: the system may take a part, and says why only when asked for the rest."""
    left = memoryview(content)
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done
