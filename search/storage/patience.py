"""How a server that is away is waited for: tried again more and more slowly, said once, and not for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from evaluators.huggingface.one_line import one_line
from space.input_error import InputError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 5.0

R = TypeVar("R")


class Patience:
    """With one server.

    Args:
        name: of what is on the server, for messages.
        lost: what is raised while the server is away.
        seconds: how long one operation waits.
    """

    def __init__(
        self,
        name: str,
        lost: type[Exception] | tuple[type[Exception], ...],
        seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.name, self.lost, self.seconds = name, lost, seconds
        self._away = False

    def until_it_answers(self, call: Callable[[], R], again: Callable[[], R] | None = None) -> R:
        """Call until the server answers.

        Args:
            call: tried first.
            again: tried in its place once the answer to ``call`` was lost.

        Raises:
            InputError: there was no answer for ``seconds``.
        """
        failures: list[float] = []
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                answer = call()
            except self.lost as error:
                failures.append(time.monotonic())
                self._wait(error, wait, failures)
                call, wait = again or call, min(2 * wait, _LONGEST_WAIT_SECONDS)
                continue
            if self._away:
                self._away = False
                logger.warning("the storage answers again")
            return answer

    def _wait(self, error: Exception, wait: float, failures: Sequence[float]) -> None:
        """Wait, and say so once; a single failure, such as a connection gone stale, is not worth a word."""
        said, minutes = one_line(getattr(error, "details", lambda: error)() or error), self.seconds / 60
        if failures[-1] - failures[0] + wait > self.seconds:
            raise InputError(
                "The Optuna storage has to stay reachable",
                f"{self.name} has not answered for {minutes:.0f} minutes: {said}",
                "Start its server and repeat the same command: nothing that was finished is lost",
            ) from None
        if len(failures) > 1 and not self._away:
            self._away = True
            logger.warning("the storage is not reachable, trying again for %.0f minutes: %s", minutes, said)
        time.sleep(wait)
