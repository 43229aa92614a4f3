"""Who works on a run: processes here or on other hosts that share its directory.

A worker holds a lock on a file of its own as long as it lives; the kernel gives the lock back however the
process ends, so the dead are known at once. Where locks do not reach another host, a worker there lives
as long as the time of its file is renewed. Decisions are taken in turns, under a lock of all workers.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

#: A worker on another host whose file was not renewed for so long is dead.
_SILENCE_SECONDS = 120.0
_BEAT_SECONDS = 20.0


@dataclass(frozen=True)
class Worker:
    """One process."""

    name: str
    host: str
    kernel: str
    """Of the running system; processes on the same one see each other's locks."""
    pid: int

    @classmethod
    def here(cls) -> Worker:
        """This process."""
        host, pid = platform.node(), os.getpid()
        return cls(f"{host}-{pid}-{secrets.token_hex(4)}", host, _kernel(), pid)


class Workers:
    """All workers of a run, as this one sees them.

    Args:
        folder: of the run; None: this process is alone, and whoever else is named is dead.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.me = Worker.here()
        self.folder = folder

    @contextmanager
    def present(self) -> Iterator[None]:
        """Be one of the workers within the context."""
        if self.folder is None:
            yield
            return
        path = self._file(self.me.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        gone = threading.Event()
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            beat = threading.Thread(target=_renew, args=(path, gone), daemon=True)
            beat.start()
            try:
                yield
            finally:
                gone.set()
                path.unlink(missing_ok=True)

    def alive(self, lease: dict[str, Any]) -> bool:
        """Whether the worker that a lease names is at work.

        Args:
            lease: with the worker's ``worker`` and ``kernel``.
        """
        name = str(lease.get("worker"))
        if name == self.me.name:
            return True
        if self.folder is None:
            return False
        path = self._file(name)
        return _locked(path) or (lease.get("kernel") != self.me.kernel and self._renewed(path))

    def others(self) -> int:
        """How many others are at work on this system."""
        if self.folder is None:
            return 0
        files = [path for path in self._file("").glob("*") if path.name != self.me.name]
        return sum(map(_locked, files))

    @contextmanager
    def turn(self, matter: str) -> Iterator[None]:
        """Be the only worker at a matter within the context; others wait for their turn.

        Args:
            matter: a name fit for a file.
        """
        with self._lock(matter) as file:
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def attempt(self, matter: str) -> Iterator[bool]:
        """Whether nobody else is at a matter; if so, be the only one within the context."""
        with self._lock(matter) as file:
            free = True
            if file is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    free = False
            yield free

    @contextmanager
    def exclusive_or_wait(self, matter: str, say: Callable[[str], None]) -> Iterator[None]:
        """As ``turn``, for what may take long: whoever has to wait says so.

        Args:
            matter: in words that also name a file.
            say: shows a line to the user.
        """
        with self.attempt(matter) as free:
            if free:
                yield
                return
        say(f"another worker is at the {matter}; waiting for it")
        with self.turn(matter):
            yield

    @contextmanager
    def _lock(self, matter: str) -> Iterator[IO[str] | None]:
        if self.folder is None:
            yield None
            return
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / matter).open("w") as file:
            yield file

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / "workers" / name

    def _renewed(self, path: Path) -> bool:
        """Whether a file was renewed lately, by the clock of the disk that both files lie on."""
        mine = self._file(self.me.name)
        try:
            os.utime(mine)
            return mine.stat().st_mtime - path.stat().st_mtime < _SILENCE_SECONDS
        except OSError:
            return False


def _locked(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _renew(path: Path, gone: threading.Event) -> None:
    while not gone.wait(_BEAT_SECONDS):
        try:
            os.utime(path)
        except OSError:
            continue


def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
