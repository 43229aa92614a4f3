"""The summary of a run: one JSON file with every figure, so that other programs need no report.

Its shape is ``summary.schema.json`` beside this file. A summary is checked before it is written and
after it is read, so a figure that is missing is found where it went missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from search.storage.whole_file import write_whole
from space.input_error import InputError


@cache
def _validator() -> Any:
    return Draft202012Validator(load_schema())


def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a summary."""
    schema: dict[str, Any] = json.loads(files("search").joinpath("summary.schema.json").read_bytes())
    return schema


def check(summary: dict[str, Any]) -> None:
    """Check a summary against the schema.

    Raises:
        InputError: naming the place and what is wrong there, for the most telling of the errors.
    """
    place = next(_not_finite(summary, "summary"), None)
    if place is not None:
        raise _refusal(f"{place} is not a finite number")
    error: ValidationError | None = best_match(_validator().iter_errors(summary))
    if error is not None:
        raise _refusal(f"{_place(error)}: {error.message[:500]}")


def read(path: Path) -> dict[str, Any]:
    """Read and check the summary at ``path``.

    Raises:
        InputError: the file is absent, no JSON, or does not follow the schema.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(f"{path} cannot be read ({error})") from error
    if not isinstance(summary, dict):
        raise _refusal(f"{path} holds a {type(summary).__name__}")
    check(summary)
    return summary


def write(path: Path, summary: dict[str, Any]) -> None:
    """Check ``summary`` and write it to ``path`` whole or not at all.

    Raises:
        InputError: the summary does not follow the schema; nothing is written.
    """
    check(summary)
    write_whole(path, json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _not_finite(value: Any, place: str) -> Iterator[str]:
    """Places of NaN and infinity, which JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{place}[{index}]")


def _place(error: ValidationError) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    return "summary" + "".join(steps)


def _refusal(found: str) -> InputError:
    return InputError(
        "A summary follows search/summary.schema.json",
        found,
        "Write it with the same version of Slimsearch that reads it, or run the search again",
    )
