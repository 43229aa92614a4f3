"""A journal file of studies for several processes of one host, safe if any is killed at any instant.

The lines are those of Optuna's ``JournalFileBackend``, so Optuna's tools can read the file. Three things
differ: the kernel releases the lock of a killed process (Optuna's lock file stays for half a minute); a
partial line that such a process left is removed before the next write, not prepended to it; and only the end
of a trial calls fsync, since a call at each of a trial's fifteen writes would be most of their cost.
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

#: The first bytes of a journal; a file that begins otherwise is never truncated.
_RECORD = b'{"op_code":'
_BLOCK = 1 << 16


class Journal(BaseJournalBackend):
    """A backend for ``optuna.storages.JournalStorage``; creates the file if it does not exist.

    Args:
        path: path of the journal file.

    Raises:
        OSError: the file cannot be opened or created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.open("ab").close()
        with self._locked(fcntl.LOCK_EX) as file:
            _truncate_partial_line(file)
        #: Number of lines read so far, and their length in bytes.
        self._read = (0, 0)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Read the records from a number on.

        A partial line at the end is ignored: it is still being written, or its writer was killed.

        Args:
            log_number_from: number of the first record to return.

        Raises:
            ValueError: a complete line is not JSON.
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
        """Append records; all processes see them once this returns.

        If a record ends a trial, these and all earlier ones are then on the disk. Others may stay in the
        page cache for a while, so a crash of the host (not of a process) may lose records of an unfinished
        trial.

        Raises:
            OSError: the records cannot be written, for instance on a full disk; the file stays valid.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._locked(fcntl.LOCK_EX) as file:
            _truncate_partial_line(file)
            try:
                file.seek(0, os.SEEK_END)
                while text:
                    text = text[file.write(text) :]
            except BaseException:
                _truncate_partial_line(file)
                raise
            if any(TrialState(log.get("state", TrialState.RUNNING)).is_finished() for log in logs):
                os.fsync(file.fileno())

    @contextmanager
    def _locked(self, kind: int) -> Iterator[BinaryIO]:
        """Open the file unbuffered, under a lock that the kernel releases if this process ends."""
        with self.path.open("rb+", buffering=0) as file:
            fcntl.flock(file, kind)
            try:
                yield file
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may hold the same open file


def _truncate_partial_line(file: BinaryIO) -> None:
    """Truncate the file after its last line feed, if it is a journal."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK) if end < size else end - 1  # nearly always the last byte is a line feed
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
