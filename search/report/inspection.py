"""What the last look at the models found: where size and time lie, and what they write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.runs.trajectories import HAND_MADE, chosen_student, retrained_entries
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


@dataclass(frozen=True)
class Written:
    """One model's continuation.

    Attributes:
        kind: ``teacher``, ``chosen``, ``promoted`` or ``baseline``.
        name: of the model, as the decision names it.
        label: of its architecture; empty for the teacher.
        text: without the prompt.
        ended: whether it ended the text itself.
    """

    kind: str
    name: str
    label: str
    text: str
    ended: bool


def side_by_side(summary: dict[str, Any]) -> list[tuple[str, list[Written]]]:
    """Each prompt with what was written: the teacher first, then the chosen one, then the others by loss."""
    models = [("teacher", "teacher", "", summary["teacher"]["continuations"]), *_students(summary)]
    return [
        (
            prompt,
            [
                Written(kind, name, label, written[place]["text"], written[place]["ended"])
                for kind, name, label, written in models
                if written
            ],
        )
        for place, prompt in enumerate(summary["prompts"])
    ]


def _students(summary: dict[str, Any]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    chosen = chosen_student(summary)
    found = [
        (entry is not chosen, not promoted, entry["loss"] or 0.0, entry)
        for promoted, entry in retrained_entries(summary)
        if entry["continuations"]
    ]
    return [
        (
            "baseline" if other and hand else "promoted" if other else "chosen",
            _name(entry, not other),
            entry["label"],
            entry["continuations"],
        )
        for other, hand, _, entry in sorted(found, key=lambda one: one[:3])
    ]


def _name(entry: dict[str, Any], chosen: bool) -> str:
    if chosen:
        return "chosen"
    return words.origin(entry["origin"]) if entry["origin"] in HAND_MADE else "promoted"
