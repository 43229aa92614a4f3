"""Every command ends alike: a message, a status, and never a traceback."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
from collections.abc import Callable

import pytest

from search.terminal.command import exit_status, kept_for_good
from space.input_error import InputError

Capture = pytest.CaptureFixture[str]


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("A rule", "a value", "Do this"), 2, "slimsearch: A rule; a value. Do this.\n"),
        (KeyboardInterrupt(), 130, "slimsearch: stopped. Go on.\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/x"),
            2,
            "slimsearch: Permission denied: runs/x. Choose a place that you may write to.\n",
        ),
        (OSError(errno.ENOSPC, "no"), 2, "slimsearch: the disk is full. Make space and go on.\n"),
    ],
    ids=["input", "stopped", "forbidden", "disk full"],
)
def test_what_stops_a_command_is_said_on_stderr(
    error: BaseException, status: int, said: str, capsys: Capture
) -> None:
    assert exit_status(raising(error), "Go on.", "go on") == status
    assert capsys.readouterr() == ("", said)


def test_the_status_of_the_work_is_passed_on() -> None:
    assert exit_status(lambda: 3) == 3


def test_what_is_imported_is_kept_for_good() -> None:
    gc.unfreeze()
    with kept_for_good():
        assert not gc.isenabled()
        imported = ["a module"]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert all(one is not imported for one in gc.get_objects())


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(OSError, match="odd"):
        exit_status(raising(OSError(errno.EIO, "odd")))


def test_a_reader_may_leave_early() -> None:
    """As ``head`` does: the rest is written to nobody, and nothing is said of it."""
    program = (
        "import sys; from search.terminal.command import exit_status\n"
        "def work():\n    for _ in range(100_000): print('a line')\n    return 0\n"
        "sys.exit(exit_status(work))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")
