"""Tell the user once what of a checkpoint is taken in another way than it says."""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import cache

logger = logging.getLogger(__name__)
_SHOWN = 3


@cache
def say_once(line: str) -> None:
    """Log a warning, unless this process has: config and weights are read several times in a run."""
    logger.warning("%s", line)


def first_names(names: Collection[str]) -> str:
    """List the first three names, and count the others."""
    shown = ", ".join(list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
