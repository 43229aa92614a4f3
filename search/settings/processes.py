"""Whether this process is one of several that train each student together, and what it means to lose them."""

from __future__ import annotations

import os


class LostProcessError(Exception):
    """The processes that evaluate together have lost each other: this worker can evaluate nothing more.

    Args:
        reason: for people.
        failed: whether it was this process that failed, and not another that is gone.
    """

    def __init__(self, reason: str, *, failed: bool = False) -> None:
        super().__init__(reason)
        self.failed = failed


def with_others() -> bool:
    """Whether this process is one of several that train each student together."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
