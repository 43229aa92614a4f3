"""Examples of a task: which of several texts is the right one. Read from a file of JSON lines.

A line is a minimal pair, ``{"good": …, "bad": …}``, or a question, ``{"context": …, "choices": […],
"answer": 0}``, the answer being the number of the right choice, from 0. Both may name a ``field``, by which
scores are reported. A choice follows its context after one space, unless either of them has one there
already; a sentence without a context begins with that space too, as in lm-evaluation-harness.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.teacher.said import first_names, say_once
from space.input_error import InputError

#: Suffixes of a file of examples.
SUFFIXES = (".jsonl", ".ndjson")
_FORM = 'Write {"good": …, "bad": …} or {"context": …, "choices": […], "answer": 0} in each line'


@dataclass(frozen=True)
class Example:
    """One example: the texts to choose from, of which one is right."""

    options: tuple[tuple[str, str], ...]
    """For each choice its context, which may be empty, and the text after it, whose likelihood counts."""
    answer: int
    """Index of the right choice."""
    field: str = ""
    """What it is about, such as ``syntax``; scores are reported by it. Empty if it is not said."""
    kind: str = ""
    """A finer kind than the field, of which a subset takes equal shares."""


def read_examples(path: Path) -> list[Example]:
    """Read the examples of a file of JSON lines.

    Where a wrong choice is the right one word for word, nothing can be right: such examples, of which
    published sets have some, are left out, and it is said.

    Raises:
        InputError: the file cannot be read, has no example, or a line that is not one, which is named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # texts may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            "A task's file is read as JSON lines", f"{path}: {reason}", "Check the file"
        ) from error
    every = {number: _example(path, number, line) for number, line in enumerate(lines, 1) if line.strip()}
    found = [example for example in every.values() if _can_be_told(example)]
    if len(found) < len(every):
        same = [str(number) for number, example in every.items() if not _can_be_told(example)]
        say_once(
            f"{path.name}: {len(same)} of {len(every):,} examples are left out, as a wrong choice is the "
            f"right one word for word (line {first_names(same)})"
        )
    if not found:
        raise InputError("A task has one example at least", f"{path} has none", _FORM)
    return found


def _can_be_told(example: Example) -> bool:
    return example.options.count(example.options[example.answer]) == 1


def subset(examples: Sequence[Example], number: int) -> list[Example]:
    """Return ``number`` of the examples: the same ones whenever asked, in equal shares of every kind.

    They are taken at even distances from the examples in order of field and kind, and by a hash of their text
    within these, so that what a file is sorted by does not matter.
    """
    if number >= len(examples):
        return list(examples)
    ordered = sorted(examples, key=lambda one: (one.field, one.kind, _hash(one)))
    return [ordered[index * len(ordered) // number] for index in range(number)]


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """Return a hash of examples, their order included."""
    return hashlib.sha256("".join(map(_hash, examples)).encode()).hexdigest()[:16]


def _hash(example: Example) -> str:
    return hashlib.sha256(repr((example.options, example.answer)).encode()).hexdigest()


def _example(path: Path, number: int, line: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _refusal(path, number, f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise _refusal(path, number, "is no object")
    context = row.get("context", "")
    if not isinstance(context, str):
        raise _refusal(path, number, "has a context that is no text")
    choices, answer = _choices(path, number, row)
    options = tuple((context, joined(context, choice)) for choice in choices)
    return Example(options, answer, str(row.get("field", "")), str(row.get("task", "")))


def _choices(path: Path, number: int, row: Mapping[str, Any]) -> tuple[list[str], int]:
    pair = "good" in row or "bad" in row
    choices: Any = [row.get("good"), row.get("bad")] if pair else row.get("choices")
    answer: Any = 0 if pair else row.get("answer")
    if not isinstance(choices, list) or not all(isinstance(one, str) and one for one in choices):
        raise _refusal(path, number, f"has {_listed(row)}, and no texts to choose from")
    if len(choices) < 2:
        raise _refusal(path, number, "has a single choice")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise _refusal(path, number, f"has the answer {answer!r}, not a number from 0 to {len(choices) - 1}")
    return choices, answer


def joined(context: str, choice: str) -> str:
    """Return the choice as it follows its context: with a space before it, unless there is white space."""
    return choice if context[-1:].isspace() or choice[:1].isspace() else f" {choice}"


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "no keys"


def _refusal(path: Path, number: int, what: str) -> InputError:
    return InputError("A task's file has an example in each line", f"line {number} of {path} {what}", _FORM)


def numbered(examples: Sequence[Example]) -> Iterator[tuple[int, int, str, str]]:
    """Yield each option's example, its number there, its context and the text after it."""
    for row, example in enumerate(examples):
        for column, (context, text) in enumerate(example.options):
            yield row, column, context, text
