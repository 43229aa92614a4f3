"""The command line settles the logging and signals of its process; here many share one."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

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
