"""Progress of downloads as log lines: the terminal belongs to the console."""

from __future__ import annotations

import logging
import time
from types import TracebackType

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


class LoggedBytes:
    """In place of a progress bar of the hub's client: says now and then how much has arrived.

    It has what the client uses of a bar. Of the several that the client opens, only the one that
    counts the bytes on disk speaks.
    """

    def __init__(self, *_: object, desc: str = "", total: float | None = None, **__: object) -> None:
        self.total, self.n = total, 0.0
        self.format_dict: dict[str, object] = {}
        self._speaks = desc.startswith("Reconstructing")
        self._said = time.monotonic()

    def __enter__(self) -> LoggedBytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        """Count what has arrived."""
        self.n += n or 0
        if self._speaks and time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            logger.info("fetched %.0f of %.0f MB", self.n / 1e6, (self.total or self.n) / 1e6)

    def close(self) -> None:
        """Nothing is held."""

    def refresh(self) -> None:
        """Nothing is drawn."""

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Nothing is drawn."""

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Nothing is drawn."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Nothing is drawn."""
