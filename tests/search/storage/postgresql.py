"""A PostgreSQL server of the tests' own, which can be stopped and started."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from itertools import count
from pathlib import Path

import psycopg
import pytest

_SECONDS = 30
#: The owner of the processes if the tests run as root, whom PostgreSQL refuses; the package creates it.
_USER = "postgres" if os.geteuid() == 0 else None


def _program(name: str) -> str:
    """Path of a program of the server; Debian keeps them off PATH."""
    places = [*sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed (Debian: apt-get install postgresql)")
    return found


class PostgreSQL:
    """A server on 127.0.0.1 with its data in a folder; nothing waits for the disk.

    Args:
        folder: empty, and owned by the user that the server runs as.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres, initdb = _program("postgres"), _program("initdb")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._numbers = count()
        self._process: subprocess.Popen[bytes] | None = None
        settings = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        command = [initdb, f"--pgdata={folder / 'data'}", *settings]
        subprocess.run(command, user=_USER, cwd=folder, check=True, capture_output=True)

    def url(self, database: str) -> str:
        """As a user names a database of this server."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
        }
        quick = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}
        options = [f"--{name}={value}" for name, value in (settings | quick).items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.postgres, "-D", str(self.folder / "data"), *options],
                user=_USER,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=_SECONDS).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop in immediate mode: every connection is cut, as in a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_SECONDS)
            self._process = None

    def stop_for_a_while(self, rng: random.Random) -> None:
        """Stop, and start again less than a third of a second later."""
        self.stop()
        time.sleep(rng.uniform(0, 0.3))
        self.start()

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """A server that is stopped at the end, whatever happens; skips where PostgreSQL is not installed."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="postgresql-", dir=memory) as name:
        folder = Path(name)
        if _USER is not None:
            try:
                shutil.chown(folder, _USER)
            except LookupError:
                pytest.skip(f"tests that run as root need a user {_USER} for PostgreSQL")
        server = PostgreSQL(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
