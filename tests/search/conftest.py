"""The command line settles the logging and signals of its process; here many share one."""

from __future__ import annotations

import logging
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

_SET_BY_THE_CONSOLE = ("slimsearch", "search", "evaluators", "space", "optuna")


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Gives back the loggers and the signal handler that a run takes for itself."""
    loggers = [logging.getLogger(name) for name in _SET_BY_THE_CONSOLE]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    terminate, verbosity = signal.getsignal(signal.SIGTERM), optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(verbosity)
    signal.signal(signal.SIGTERM, terminate)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def quick_disk() -> Iterator[Path]:
    """A folder in memory where there is one: SQLite waits for the disk at every write."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
