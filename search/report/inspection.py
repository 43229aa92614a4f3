"""Sections of the report on the models themselves: parameters and time by part, and sample continuations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.runs.trajectories import HAND_MADE, chosen_student, retrained_entries
from search.terminal import format as words

#: Names of the parts, in the order in which a token passes through them.
_PARTS = {
    "embeddings": "embeddings",
    "attention": "attention",
    "mlp": "MLP",
    "experts": "experts",
    "other": "other layers",
    "head": "head",
    "rest": "norms and the rest",
}
#: Space that a name takes in its piece, as shares of the full width: both margins together, and each letter.
_MARGINS, _LETTER = 0.016, 0.0078


@dataclass(frozen=True)
class Piece:
    """One part of a bar; ``share`` is its length relative to the longest bar of the figure."""

    part: str
    name: str
    value: str
    share: float
    named: bool


@dataclass(frozen=True)
class Bar:
    """A bar that shows one model, divided into its parts."""

    model: str
    total: str
    pieces: list[Piece]


@dataclass(frozen=True)
class Stack:
    """Bars of one quantity for the teacher and the chosen model, on the same scale."""

    title: str
    bars: list[Bar]
    rows: list[tuple[str, str, list[str]]]
    """Rows of the table: part, its name, and for each model the value and its share of the model's total."""


def breakdown_stacks(summary: dict[str, Any]) -> list[Stack]:
    """Return stacks for parameters, prefill and decode time; empty if no model has a breakdown."""
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
    """Rename ``norms`` to ``rest``, since the times put norms there too."""
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
class Continuation:
    """A model's continuation of a prompt.

    Attributes:
        kind: ``teacher``, ``chosen``, ``promoted`` or ``baseline``.
        name: name of the model, as in the decision section.
        label: label of its architecture; empty for the teacher.
        text: the continuation without the prompt.
        ended: whether the model emitted its end-of-text token.
    """

    kind: str
    name: str
    label: str
    text: str
    ended: bool


def side_by_side(summary: dict[str, Any]) -> list[tuple[str, list[Continuation]]]:
    """Return each prompt with its continuations: the teacher's, the chosen model's, the others' by loss."""
    models = [("teacher", "teacher", "", summary["teacher"]["continuations"]), *_students(summary)]
    return [
        (
            prompt,
            [
                Continuation(kind, name, label, continuations[index]["text"], continuations[index]["ended"])
                for kind, name, label, continuations in models
                if continuations
            ],
        )
        for index, prompt in enumerate(summary["prompts"])
    ]


def _students(summary: dict[str, Any]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """Return kind, name, label and continuations of each student: the chosen one first, baselines last."""
    chosen = chosen_student(summary)
    found = [
        (entry is not chosen, not promoted, entry["loss"] or 0.0, entry)
        for promoted, entry in retrained_entries(summary)
        if entry["continuations"]
    ]
    return [
        (
            "baseline" if not_chosen and baseline else "promoted" if not_chosen else "chosen",
            _name(entry, not not_chosen),
            entry["label"],
            entry["continuations"],
        )
        for not_chosen, baseline, _, entry in sorted(found, key=lambda one: one[:3])
    ]


def _name(entry: dict[str, Any], chosen: bool) -> str:
    if chosen:
        return "chosen"
    return words.origin(entry["origin"]) if entry["origin"] in HAND_MADE else "promoted"
