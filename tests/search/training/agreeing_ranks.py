"""Processes that do something together and fail at it, or not; each writes what it was left with.

Started by ``torch.distributed.run`` with a folder.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

from search.terminal.command import LostProcessError
from search.training import process_group as module
from search.training.process_group import run_processes

#: What the main process fails with, and the other.
CASES: list[tuple[Exception | None, Exception | None]] = [
    (None, None),
    (ValueError("one"), ValueError("other")),
    (None, RuntimeError("late")),
    (MemoryError("full"), None),
]


def main(folder: Path) -> None:
    """All cases, and at last one in which the main process fails while the other waits for it."""
    module._FAILURE_TIMEOUT = timedelta(seconds=1)
    number = 0 if run_processes().is_main else 1
    found = [_outcome(case[number]) for case in CASES]
    assert not run_processes().out_of_step
    found.append(
        _outcome(
            RuntimeError("alone") if run_processes().is_main else None, waits=not run_processes().is_main
        )
    )
    assert run_processes().out_of_step
    (folder / f"{number}.json").write_text(json.dumps(found))
    os._exit(0)


def _outcome(error: Exception | None, *, waits: bool = False) -> list[object]:
    try:
        with run_processes().in_step():
            if waits:
                torch.distributed.barrier()
            if error is not None:
                raise error
    except LostProcessError as lost:
        return ["lost", lost.failed]
    except Exception as failure:
        return [type(failure).__name__, str(failure)]
    return []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
