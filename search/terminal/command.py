"""How every command ends: what a person reads when it cannot go on, and its exit status.

0: done. 2: input that cannot be worked with, a place that may not be written, or a full disk. 130: stopped by
Ctrl-C. Whoever reads the output may leave early, as ``head`` does.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from safetensors import SafetensorError

from space.input_error import InputError

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def status_of(work: Callable[[], int], stopped: str = "", after_space: str = "") -> int:
    """Do the work of a command and return its exit status; messages go to stderr.

    Args:
        work: returns the status of a command that came to its end.
        stopped: what a person who stopped it should know, as a sentence.
        after_space: what to do once a full disk has space again, as a clause.
    """
    try:
        status = work()
        sys.stdout.flush()
        return status
    except InputError as error:
        _say(str(error))
        return 2
    except BrokenPipeError:
        # Else Python would try to write the rest when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, SafetensorError) as error:
        if _disk_full(error):
            _say(f"the disk is full. Make space and {after_space or 'run the same command again'}.")
        elif isinstance(error, OSError) and error.errno in _FORBIDDEN:
            _say(f"{error.strerror}: {error.filename}. Choose a place that you may write to.")
        else:
            raise
        return 2
    except KeyboardInterrupt:
        _say(f"stopped. {stopped}".rstrip())
        return 130


def _say(message: str) -> None:
    print(f"slimsearch: {message}", file=sys.stderr)


def _disk_full(error: Exception) -> bool:
    """Whether a write failed for want of space; safetensors says so in its message alone."""
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)
