"""What the teacher and the retrained models wrote after the same prompts, model beside model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.runs.journeys import HAND_MADE, chosen_student, retrained_entries
from search.terminal import format as words


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
