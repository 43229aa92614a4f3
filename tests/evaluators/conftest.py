"""What all tests of the evaluators need."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def messages_are_heard() -> None:
    """No console of an earlier test, or of a shared fixture, keeps messages from ``caplog``."""
    for name in ("slimsearch", "search", "evaluators", "space"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)
