"""How every command ends: what a person reads when it cannot go on, and its exit status.

0: done. 2: input that cannot be worked with, a place that may not be written, or a full disk. 130: stopped by
Ctrl-C. Whoever reads the output may leave early, as ``head`` does.
"""

from __future__ import annotations

import ast
import errno
import inspect
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

from safetensors import SafetensorError
from typing_extensions import Doc

from space.input_error import InputError


class LostProcessError(Exception):
    """The processes that evaluate together have lost each other: this worker can evaluate nothing more.

    Args:
        reason: for people.
        failed: whether it was this process that failed, and not another that is gone.
    """

    def __init__(self, reason: str, *, failed: bool = False) -> None:
        super().__init__(reason)
        self.failed = failed


def is_multi_process() -> bool:
    """Whether this process is one of several that train each student together."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


T = TypeVar("T")


def flag_help(flags: type[T]) -> type[T]:
    """Make the text under each field its help, as one paragraph.

    tyro reads such texts by itself, but keeps the line breaks of the source in help and completions.
    """
    hints = get_type_hints(flags, include_extras=True)
    for name, text in _texts(flags).items():
        flags.__annotations__[name] = Annotated[hints[name], Doc(" ".join(text.split()))]
    return flags


def _texts(flags: type[Any]) -> dict[str, str]:
    (found,) = ast.parse(textwrap.dedent(inspect.getsource(flags))).body
    assert isinstance(found, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise(found.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = text
    return texts


_USER_AND_PASSWORD = re.compile(r"(://[^:/@]*):[^@]*@")


def redact_password(text: str) -> str:
    """The text, a password in an address such as ``postgresql://user:password@host/name`` hidden."""
    return _USER_AND_PASSWORD.sub(r"\1:***@", text)


_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def exit_status(work: Callable[[], int], stopped: str = "", after_space: str = "") -> int:
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
