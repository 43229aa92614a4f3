"""Studies in one file that several processes of a host append to, any of which may be killed at any instant.

The lines are those of Optuna's ``JournalFileBackend``, so its own tools read the file. Three things
are different: the kernel releases the lock of a process that dies (Optuna's lies there for half a minute);
half a line that such a process left is cut off before the next one is written, not glued to it; and only the
end of a trial waits for the disk, since waiting at each of a trial's fifteen writes is most of their cost.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

#: How a journal begins; a file of anything else is left as it is.
_RECORD = b'{"op_code":'
_BLOCK = 1 << 16


class Journal(BaseJournalBackend):
    """A backend for ``optuna.storages.JournalStorage``; the file is created if it is not there.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be opened or created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.open("ab").close()
        with self._locked(fcntl.LOCK_EX) as file:
            _cut_half_a_line(file)
        #: Lines that were read, and the bytes that they take.
        self._read = (0, 0)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Read the records from a number on.

        Half a line at the end is not there yet, or never will be.

        Args:
            log_number_from: records before it are passed over.

        Raises:
            ValueError: a whole line is no record.
        """
        number, offset = self._read if self._read[0] <= log_number_from else (0, 0)
        with self._locked(fcntl.LOCK_SH) as file:
            file.seek(offset)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                return
            number, offset = number + 1, offset + len(line)
            self._read = (number, offset)
            if number > log_number_from:
                yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records: every process sees them when it returns.

        They are on the disk then, with all before them, if a trial has ended by them. Others lie in the
        kernel's hands for a while, so that a crash of the host (of no process) may take what it was told of
        an unfinished trial.

        Raises:
            OSError: they could not be written, for instance for want of space; what is there stays whole.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._locked(fcntl.LOCK_EX) as file:
            _cut_half_a_line(file)
            try:
                file.seek(0, os.SEEK_END)
                while text:
                    text = text[file.write(text) :]
            except BaseException:
                _cut_half_a_line(file)
                raise
            if any(TrialState(log.get("state", TrialState.RUNNING)).is_finished() for log in logs):
                os.fsync(file.fileno())

    @contextmanager
    def _locked(self, kind: int) -> Iterator[BinaryIO]:
        """The file, unbuffered, under a lock that ends with this process at the latest."""
        with self.path.open("rb+", buffering=0) as file:
            fcntl.flock(file, kind)
            try:
                yield file
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may hold the same open file


def _cut_half_a_line(file: BinaryIO) -> None:
    """Take away what follows the last line feed, if the file is a journal."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK) if end < size else end - 1  # the last byte alone decides nearly always
        file.seek(start)
        block = file.read(end - start)
        if b"\n" in block:
            end = start + block.rindex(b"\n") + 1
            break
        end = start
    if end < size:
        file.seek(0)
        if _RECORD.startswith(file.read(min(size, len(_RECORD)))):
            file.truncate(end)
