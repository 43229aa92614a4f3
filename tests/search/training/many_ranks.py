"""The command line as a launcher starts it, with something wrong in the main process where a test asks it.

Started by ``torch.distributed.run``: a comma-separated list of what is wrong, then flags of the search.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch

from accelerate import Accelerator

from search.run import main
from search.rungs.evaluation import CandidateError
from search.settings.config import RunConfig
from search.settings.methods import accelerator_of
from search.terminal.console import Console
from search.training import process_group as ranks
from tests.evaluators.distillation.many_processes import shard

#: What the first training of a kind raises in its third step, in the main process alone.
WRONG: dict[str, Exception] = {
    "disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "limit": CandidateError("hung past its limit of 600 s"),
}


def _raising(error: Exception) -> Callable[..., object]:
    work = Console.work

    @contextmanager
    def worked(self: Console, text: str, kind: str, total: int) -> Iterator[Callable[[int], None]]:
        with work(self, text, kind, total) as advance:
            calls = 0

            def count(tokens: int) -> None:
                nonlocal calls
                calls += 1
                if kind == "distil" and calls == 3:
                    raise error
                advance(tokens)

            yield count

    return worked


def _sharded(config: RunConfig) -> Accelerator:
    accelerator = accelerator_of(config)
    shard()
    return accelerator


if __name__ == "__main__":
    ranks._FAILURE_TIMEOUT = timedelta(seconds=3)
    for wrong in sys.argv[1].split(","):
        if wrong in WRONG:
            patch.object(Console, "work", _raising(WRONG[wrong])).start()
        if wrong == "sharded":
            for module in ("preparation", "correction", "launch"):
                patch(f"search.stages.{module}.accelerator_of", _sharded).start()
    sys.exit(main(sys.argv[2:]))
