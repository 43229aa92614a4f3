"""What all commands share: help texts of flags, hidden passwords, error messages and exit statuses.

Exit status 0: done. 2: invalid input, no permission to write, or a full disk. 130: stopped by Ctrl-C. It
is no error if the reader of the output closes the pipe early, as ``head`` does.
"""

from __future__ import annotations

import ast
import errno
import gc
import inspect
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, get_type_hints

from safetensors import SafetensorError
from typing_extensions import Doc

from space.input_error import InputError


class LostProcessError(Exception):
    """The processes of this worker lost contact with each other, so it can evaluate nothing more.

    Args:
        reason: message for the user.
        failed: whether this process failed itself, rather than lost contact with another one.
    """

    def __init__(self, reason: str, *, failed: bool = False) -> None:
        super().__init__(reason)
        self.failed = failed


def is_multi_process() -> bool:
    """Whether this process is one of several that train each student together."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_sharded() -> bool:
    """Whether Accelerate was told to shard weights over the processes."""
    return is_set("ACCELERATE_USE_FSDP")


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


@contextmanager
def kept_for_good() -> Iterator[None]:
    """Within the context nothing is searched for garbage, and what it makes is not searched afterwards.

    For imports: libraries make a million objects that stay, and to look through them again and again takes a
    quarter of the start of a command.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


T = TypeVar("T")


def flag_help(flags: type[T]) -> type[T]:
    """Class decorator: make the docstring of each node its help text, as one paragraph.

    tyro reads these docstrings itself, but keeps the line breaks of the source in help and shell completion.
    """
    hints = get_type_hints(flags, include_extras=True)
    for name, text in _field_docstrings(flags).items():
        flags.__annotations__[name] = Annotated[hints[name], Doc(" ".join(text.split()))]
    return flags


def _field_docstrings(flags: type[Any]) -> dict[str, str]:
    (class_definition,) = ast.parse(textwrap.dedent(inspect.getsource(flags))).body
    assert isinstance(class_definition, ast.ClassDef)
    texts = {}
    for node, next_node in itertools.pairwise(class_definition.body):
        match node, next_node:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = text
    return texts


_USER_AND_PASSWORD = re.compile(r"(://[^:/@]*):[^@]*@")


def redact_password(text: str) -> str:
    """Hide the password in a URL such as ``postgresql://user:password@host/name`` within the text."""
    return _USER_AND_PASSWORD.sub(r"\1:***@", text)


_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def exit_status(work: Callable[[], int], stopped: str = "", after_space: str = "") -> int:
    """Run a command and return its exit status; error messages go to stderr.

    Args:
        work: the command; returns its exit status if it completes.
        stopped: advice after Ctrl-C, as a sentence.
        after_space: advice once a full disk has space again, as a clause.
    """
    try:
        status = work()
        sys.stdout.flush()
        return status
    except InputError as error:
        _say(str(error))
        return 2
    except BrokenPipeError:
        # Otherwise Python would fail again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, SafetensorError) as error:
        if _disk_full(error):
            _say(f"the disk is full. Make space and {after_space or 'run the same command again'}.")
        elif isinstance(error, OSError) and error.errno in _NO_PERMISSION:
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
    """Whether the disk is full; safetensors has the error number only in its message."""
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)
