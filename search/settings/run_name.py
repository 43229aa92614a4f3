"""The name of a run, which is that of its folder."""

from __future__ import annotations

from pathlib import Path

from search.settings.flag_rules import budgets_named
from search.settings.flags import Flags
from search.settings.teachers import short_name
from space.input_error import InputError


def name_of(flags: Flags, teacher: str) -> str:
    """Return the name of a run or a family: the user's, or else made of the teacher's name and the budgets.

    Raises:
        InputError: the name cannot be the name of a folder.
    """
    measure = [] if flags.budget_of == "total" else [flags.budget_of]
    name = flags.study_name or "-".join([short_name(teacher), *folders_of(flags), *measure])
    if Path(name).name != name or name in ("", ".", ".."):
        raise InputError(
            "The name of a run has to be the name of one folder",
            f"{name!r} is none",
            "Try --study-name first-try",
        )
    return name


def folders_of(flags: Flags) -> list[str]:
    """Return the budgets as names of folders."""
    return [text.strip().replace("%", "pct") for text in budgets_named(flags)]
