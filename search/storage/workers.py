"""The workers of a run: processes on this host, or on others that share the run directory.

Each worker locks a file of its own for its lifetime. The kernel releases the lock however the process ends,
so a dead worker is detected at once. Where locks do not work across hosts, a worker on another host counts as
alive while it renews the modification time of its file. Locks shared by all workers serialise decisions.
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

#: A worker on another host counts as dead after this time without a heartbeat.
_DEAD_AFTER_SECONDS = 120.0
_HEARTBEAT_SECONDS = 20.0


@dataclass(frozen=True)
class Worker:
    """One process that works on a run."""

    name: str
    host: str
    kernel: str
    """Id of the running kernel; processes on the same one see each other's locks."""
    pid: int

    @classmethod
    def here(cls) -> Worker:
        """Return the worker of this process."""
        host, pid = platform.node(), os.getpid()
        return cls(f"{host}-{pid}-{secrets.token_hex(4)}", host, _kernel(), pid)


class Workers:
    """The workers of a run, from the point of view of this process.

    Args:
        folder: run directory; None: this process works alone, and any other worker counts as dead.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.me = Worker.here()
        self.folder = folder

    @contextmanager
    def present(self) -> Iterator[None]:
        """Register this process as a worker within the context."""
        if self.folder is None:
            yield
            return
        path = self._file(self.me.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        stopped = threading.Event()
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            heartbeat = threading.Thread(target=_renew, args=(path, stopped), daemon=True)
            heartbeat.start()
            try:
                yield
            finally:
                stopped.set()
                path.unlink(missing_ok=True)

    def alive(self, lease: dict[str, Any]) -> bool:
        """Return whether the worker named in a lease is alive.

        Args:
            lease: has the worker's name as ``worker``, and its ``kernel``.
        """
        name = str(lease.get("worker"))
        if name == self.me.name:
            return True
        if self.folder is None:
            return False
        path = self._file(name)
        return _locked(path) or (lease.get("kernel") != self.me.kernel and self._renewed(path))

    def others(self) -> int:
        """Count the other live workers on this system."""
        if self.folder is None:
            return 0
        files = [path for path in self._file("").glob("*") if path.name != self.me.name]
        return sum(map(_locked, files))

    @contextmanager
    def turn(self, lock: str) -> Iterator[None]:
        """Hold a lock within the context, shared by all workers; wait for it if necessary.

        Args:
            lock: name of the lock, usable as a file name.
        """
        with self._lock(lock) as file:
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def attempt(self, lock: str) -> Iterator[bool]:
        """Try to hold a lock within the context; yield whether it was free."""
        with self._lock(lock) as file:
            free = True
            if file is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    free = False
            yield free

    @contextmanager
    def exclusive_or_wait(self, lock: str, say: Callable[[str], None]) -> Iterator[None]:
        """Hold a lock like ``turn``, and tell the user if there is a wait.

        Args:
            lock: name of the lock, in words and usable as a file name.
            say: shows a line to the user.
        """
        with self.attempt(lock) as free:
            if free:
                yield
                return
        say(f"another worker is at the {lock}; waiting for it")
        with self.turn(lock):
            yield

    @contextmanager
    def _lock(self, lock: str) -> Iterator[IO[str] | None]:
        if self.folder is None:
            yield None
            return
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / lock).open("w") as file:
            yield file

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / "workers" / name

    def _renewed(self, path: Path) -> bool:
        """Return whether a file was renewed recently, by the clock of the file system."""
        mine = self._file(self.me.name)
        try:
            os.utime(mine)
            return mine.stat().st_mtime - path.stat().st_mtime < _DEAD_AFTER_SECONDS
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


def _renew(path: Path, stopped: threading.Event) -> None:
    while not stopped.wait(_HEARTBEAT_SECONDS):
        try:
            os.utime(path)
        except OSError:
            continue


def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
