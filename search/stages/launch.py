"""A run that ``accelerate launch`` or ``torchrun`` started in several processes: who does what, and the end.

Whatever ends the main process ends the others: it lets them go, or, where they are in a training that it
left, they are ended by what started them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from search.settings.processes import LostProcessError
from space.input_error import InputError

if TYPE_CHECKING:
    from search.training.ranks import Ranks


def take_part(run: Callable[[], int]) -> NoReturn:
    """Lead the run, or follow whoever does, and end the process.

    It ends at once: taking down what connects processes waits for all, or aborts where one was quicker.

    Args:
        run: does it, in the main process, and returns the exit status.
    """
    # Ctrl-C reaches all processes of a terminal; until one knows its part it just ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from search.training.ranks import ranks

    joined = ranks()
    status = _lead(run, joined) if joined.leads else _follow(joined)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _lead(run: Callable[[], int], joined: Ranks) -> int:
    signal.signal(signal.SIGINT, _stop_once)
    signal.signal(signal.SIGTERM, _stop_once)
    try:
        status = run()
    except LostProcessError as error:
        print(f"slimsearch: {error}. Run the same command again to go on where it stopped.", file=sys.stderr)
        status = 1
    except Exception:
        traceback.print_exc()
        status = 1
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    if not joined.apart:
        with suppress(LostProcessError):  # who is gone needs no leave
            joined.let_go()
    return status


def _follow(joined: Ranks) -> int:
    """Say nothing, but for why this process cannot go on while the others could."""
    logging.disable()
    warnings.simplefilter("ignore")
    from search.stages.following import Follower

    try:
        Follower(joined).follow()
    except LostProcessError as error:
        return _failed(str(error)) if error.failed else 1
    except InputError as error:
        return _failed(str(error))
    except Exception:
        return _failed(traceback.format_exc())
    return 0


def _failed(why: str) -> int:
    print(f"slimsearch, process {os.environ['RANK']}: {why}", file=sys.stderr)
    return 1


def _stop_once(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C does; what started the processes passes the signal on, and would interrupt the tidying up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
