"""Safetensors files that are written tensor by tensor, so that one tensor is in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

Entry = tuple[str, torch.dtype, Sequence[int]]
"""Name, dtype and shape of a tensor."""

#: The names of dtypes in safetensors.
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_NAMES |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
_NAMES |= {torch.uint8: "U8", torch.bool: "BOOL"}
#: The bytes of a header are a multiple of this, so that tensors are aligned in memory.
_ALIGNMENT = 8


class TensorWriter:
    """Appends tensors to a file, and replaces an existing one when all are there.

    ``with TensorWriter(path, room) as file: file.add(…); file.finish(…)``. If an exception leaves the
    context, an existing file is unchanged. Tensors have to have one size of values, or some may begin at odd
    addresses.

    Args:
        path: the file.
        room: bytes that are left for the header, from ``header_bytes`` of all tensors that may come.
    """

    def __init__(self, path: Path, room: int) -> None:
        self.path, self.room = path, room
        self._new = unfinished(path)
        self._entries: list[Entry] = []
        self._end = room
        self._file = self._new.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._new.unlink(missing_ok=True)

    def add(self, name: str, values: Tensor) -> None:
        """Append a tensor.

        Raises:
            OSError: the disk is full.
        """
        content = values.detach().cpu().contiguous().flatten().view(torch.uint8)
        write_at(self._file.fileno(), content.numpy().data, self._end)
        self._entries.append((name, values.dtype, tuple(values.shape)))
        self._end += len(content)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header, and put the file in its place.

        Raises:
            OSError: the disk is full.
        """
        _, header = file_header(self._entries, metadata, self.room)
        write_at(self._file.fileno(), header, 0)
        os.fsync(self._file.fileno())
        os.replace(self._new, self.path)


def header_bytes(entries: Iterable[Entry], metadata: Mapping[str, str]) -> int:
    """Return the bytes of a header with its length, where no tensor ends behind a petabyte."""
    return len(file_header(entries, metadata, start=10**15)[1])


def file_header(
    entries: Iterable[Entry], metadata: Mapping[str, str], size: int = 0, start: int = 0
) -> tuple[dict[str, int], bytes]:
    """Return the end of each tensor, counted from the end of the header, and the header with its length.

    Args:
        entries: the tensors in the order in which they lie in the file, without holes.
        metadata: further entries.
        size: bytes that the header is filled up to with spaces.
        start: where the first tensor begins.
    """
    found: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    ends, end = {}, start
    for name, dtype, shape in entries:
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        found[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        ends[name] = end
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    assert not size or len(text) + 8 <= size, "there is no room for the header"
    text = text.ljust(size - 8)
    return ends, len(text).to_bytes(8, "little") + text


def unfinished(path: Path) -> Path:
    """Return the path that a file has while it is written."""
    return path.with_suffix(".unfinished")


def write_at(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes: the system may write a part, and reports an error only on the next call.

    Raises:
        OSError: the disk is full.
    """
    left = memoryview(content)
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done
