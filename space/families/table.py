"""The command that prints the table of what can be cut of which type: ``python -m space.families``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers

from space import families
from space.families.support import TYPES, markdown, rows, summary, told

_WHAT = "Try types of causal language models and print along which axes each can be cut."
TABLE = Path(families.__path__[0]) / "SUPPORT.md"
_HEADING = """# Which teachers can be cut, and along which axes

Found by trying every type of causal language model of transformers {version}:

    python -m space.families --write

An axis stands here if students of random sizes and random rankings computed the same as the masked teacher,
along this axis alone and along all at once, and could be saved, read back without a warning by a process
that knows only transformers, and generate the same with a KV cache as without. Axes in brackets are those
that the class moves along. A teacher is tried again, with its own flags, before any work on it.

{summary}
"""


def page(table: str, counts: str) -> str:
    """The file that is checked in."""
    return _HEADING.format(version=transformers.__version__, summary=counts) + "\n" + table


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the types that are named, or all; 1 if something fails that a teacher is not refused for."""
    parser = argparse.ArgumentParser(prog="python -m space.families", description=_WHAT)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all by default")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} of all types")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.types if name not in TYPES]
    if unknown:
        parser.error(f"transformers has no causal language model of type {unknown[0]!r}")
    if asked.write and asked.types:
        parser.error("the table is written of all types; leave the names out, or --write")
    table = rows(asked.types or TYPES, report=told)
    print(markdown(table), summary(table), sep="\n")
    if asked.write:
        TABLE.write_text(page(markdown(table), summary(table)), encoding="utf-8")
    late = [row.model_type for row in table if row.late]
    if late:
        print(f"Not refused at run time in the same words: {', '.join(late)}", file=sys.stderr)
    return 1 if late else 0
