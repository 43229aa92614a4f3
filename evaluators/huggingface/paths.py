"""Names that were meant otherwise: is it a path or a hub id, and what lies near it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

#: What the hub allows: ``NAME`` or ``OWNER/NAME``.
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def may_be_hub_id(name: str) -> bool:
    """Whether the hub could have a repository of this name."""
    return _HUB_ID.fullmatch(name) is not None and "--" not in name and ".." not in name


def nothing_there(name: str) -> str:
    """That there is no such path, with names like it that do exist: a clause for an ``InputError``."""
    path = Path(name).expanduser()
    return f"{path} does not exist{_suggestion(path)}"


def _suggestion(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    try:
        names = [child.name for child in folder.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=3)
    return f" (did you mean {' or '.join(str(folder / name) for name in near)}?)" if near else ""
