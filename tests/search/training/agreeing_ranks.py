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
from search.training import ranks as module
from search.training.ranks import ranks

#: What the main process fails with, and the other.
CASES: list[tuple[Exception | None, Exception | None]] = [
    (None, None),
    (ValueError("one"), ValueError("other")),
    (None, RuntimeError("late")),
    (MemoryError("full"), None),
]


def main(folder: Path) -> None:
    """All cases, and at last one in which the main process fails while the other waits for it."""
    module._PATIENCE = timedelta(seconds=1)
    number = 0 if ranks().leads else 1
    found = [_outcome(case[number]) for case in CASES]
    assert not ranks().apart
    found.append(_outcome(RuntimeError("alone") if ranks().leads else None, waits=not ranks().leads))
    assert ranks().apart
    (folder / f"{number}.json").write_text(json.dumps(found))
    os._exit(0)


def _outcome(error: Exception | None, *, waits: bool = False) -> list[object]:
    try:
        with ranks().together():
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
