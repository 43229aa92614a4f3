"""Where size and time of the teacher and of the chosen model lie: stacked bars, and a table of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.runs.journeys import chosen_student
from search.terminal import format as words

#: Parts in the order in which a token passes them, and what they are called.
_PARTS = {
    "embeddings": "embeddings",
    "attention": "attention",
    "mlp": "MLP",
    "experts": "experts",
    "other": "other layers",
    "head": "head",
    "rest": "norms and the rest",
}
#: Room for a name within its piece, as a share of the width: for its margins, and for each letter.
_MARGINS, _LETTER = 0.016, 0.0078


@dataclass(frozen=True)
class Piece:
    """One part of a bar; ``share`` of the longest bar of its figure."""

    part: str
    name: str
    value: str
    share: float
    named: bool


@dataclass(frozen=True)
class Bar:
    """One model."""

    model: str
    total: str
    pieces: list[Piece]


@dataclass(frozen=True)
class Stack:
    """One quantity of the teacher and the chosen model, on the same scale."""

    title: str
    bars: list[Bar]
    rows: list[tuple[str, str, list[str]]]
    """Of the table: a part, its name, and for each model its value and its share of the model's whole."""


def breakdown_stacks(summary: dict[str, Any]) -> list[Stack]:
    """Parameters, prefill and decode; none where nothing was taken apart."""
    found = {"teacher": summary["teacher"], "chosen": chosen_student(summary)}
    models = {name: one["breakdown"] for name, one in found.items() if one and one["breakdown"]}
    if not models:
        return []
    counted = {name: _with_rest(one["parameters"]) for name, one in models.items()}
    prefill = {name: one["latency"]["prefill"] for name, one in models.items()}
    decode = {name: one["latency"]["decode"] for name, one in models.items()}
    return [
        _stack("Parameters", counted, words.count),
        _stack("Time to read the prompt, ms", prefill, words.milliseconds),
        _stack("Time to make a token, ms", decode, words.milliseconds),
    ]


def _with_rest(parameters: dict[str, int]) -> dict[str, int]:
    """Norms are what is left of the parameters, as of the time."""
    return {"rest" if part == "norms" else part: count for part, count in parameters.items()}


def _stack(title: str, models: dict[str, dict[str, Any]], write: Callable[[float | None], str]) -> Stack:
    longest = max(sum(parts.values()) for parts in models.values()) or 1
    present = [part for part in _PARTS if any(part in parts for parts in models.values())]
    rows = []
    for part in present:
        cells = []
        for parts in models.values():
            whole = sum(parts.values()) or 1
            value = parts.get(part)
            cells += [write(value), "" if value is None else words.percent(value / whole)]
        rows.append((part, cells))
    bars = [
        Bar(name, write(sum(parts.values())), [_piece(part, parts, longest, write) for part in present])
        for name, parts in models.items()
    ]
    return Stack(title, bars, [(part, _PARTS[part], cells) for part, cells in rows])


def _piece(part: str, parts: dict[str, Any], longest: float, write: Callable[[float | None], str]) -> Piece:
    value = parts.get(part, 0)
    share = value / longest
    return Piece(part, _PARTS[part], write(value), share, share >= _MARGINS + _LETTER * len(_PARTS[part]))
