"""Writes the demo's task: minimal pairs of Python, from the standard library.

``python -m studies.demo.pairs`` writes ``pairs.jsonl`` beside this file. It comes with the project, so that
the task is the same whatever the version of Python. Each example is a line of code with the lines before it
as context, and the same line with one token changed: another closing bracket, a keyword of another language,
another name of those in the context, or another depth of the block.
"""

from __future__ import annotations

import io
import json
import keyword
import random
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
PAIRS = HERE / "pairs.jsonl"
_PER_FIELD, _CONTEXT_LINES, _MOST_CHARACTERS = 60, 3, 72
_MODULES = (
    *("argparse", "ast", "calendar", "configparser", "copy", "csv", "difflib", "dis", "fileinput", "ftplib"),
    *("gettext", "gzip", "heapq", "inspect", "mailbox", "optparse", "pickle", "pprint", "shutil", "smtplib"),
)
_FOREIGN = {
    "None": "null",
    "True": "true",
    "False": "false",
    "self": "this",
    "elif": "elseif",
    "and": "&&",
    "not": "no",
    "def": "function",
    "import": "include",
    "raise": "throw",
    "except": "catch",
}
_CLOSING = ")]}"

Change = Callable[[Sequence[str], str, random.Random], str | None]


def other_bracket(context: Sequence[str], line: str, draw: random.Random) -> str | None:
    """Return the line with its last closing bracket replaced by another one; None if it has none."""
    place = max(line.rfind(bracket) for bracket in _CLOSING)
    if place < 0:
        return None
    others = [bracket for bracket in _CLOSING if bracket != line[place]]
    return line[:place] + draw.choice(others) + line[place + 1 :]


def foreign_keyword(context: Sequence[str], line: str, draw: random.Random) -> str | None:
    """Return the line with a word of Python replaced by another language's; None if it has none."""
    places = [(start, end) for start, end, word in _names(line) if word in _FOREIGN]
    if not places:
        return None
    start, end = draw.choice(places)
    return line[:start] + _FOREIGN[line[start:end]] + line[end:]


def other_name(context: Sequence[str], line: str, draw: random.Random) -> str | None:
    """Return the line with a name that the context has replaced by another one of the context."""
    known = {word for before in context for _, _, word in _names(before)} - set(keyword.kwlist)
    places = [
        (start, end) for start, end, word in _names(line) if word in known and not keyword.iskeyword(word)
    ]
    if not places or len(known) < 2:
        return None
    start, end = draw.choice(places)
    return line[:start] + draw.choice(sorted(known - {line[start:end]})) + line[end:]


def other_depth(context: Sequence[str], line: str, draw: random.Random) -> str | None:
    """Return the line where no block begins: four spaces further out; None if the line above opens none."""
    opens = context[-1].rstrip().endswith(":") if context else False
    return line[4:] if opens and line.startswith("        ") else None


FIELDS: dict[str, Change] = {
    "blocks": other_depth,
    "brackets": other_bracket,
    "keywords": foreign_keyword,
    "names": other_name,
}


def main() -> int:
    """Write the pairs."""
    library = Path(sysconfig.get_paths()["stdlib"])
    rows = [row for field, change in FIELDS.items() for row in _pairs(library, field, change)]
    PAIRS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return 0


def _pairs(library: Path, field: str, change: Change) -> Iterator[dict[str, str]]:
    """Yield as many pairs of a field as are wanted, an equal number from each module."""
    for module in _MODULES:
        draw = random.Random(f"{field} {module}")
        lines = (library / f"{module}.py").read_text(encoding="utf-8").splitlines()
        places = list(range(_CONTEXT_LINES, len(lines)))
        draw.shuffle(places)
        found = 0
        for place in places:
            context, line = lines[place - _CONTEXT_LINES : place], lines[place]
            if not (_is_code([*context, line]) and (changed := change(context, line, draw)) is not None):
                continue
            yield {"field": field, "context": "\n".join(context) + "\n", "good": line, "bad": changed}
            if (found := found + 1) == _PER_FIELD // len(_MODULES):
                break


def _is_code(lines: Sequence[str]) -> bool:
    """Whether all lines are short, not empty, and neither comments nor text."""
    return all(
        line.strip() and len(line) <= _MOST_CHARACTERS and not {'"', "'", "#"} & set(line) for line in lines
    )


def _names(line: str) -> list[tuple[int, int, str]]:
    """Return the beginning, the end and the text of each name in a line of code."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(line.strip()).readline):
            if token.type == tokenize.NAME:
                offset = len(line) - len(line.lstrip())
                found.append((token.start[1] + offset, token.end[1] + offset, token.string))
    except (tokenize.TokenError, IndentationError):  # the line goes on in the next
        pass
    return found


if __name__ == "__main__":
    sys.exit(main())
