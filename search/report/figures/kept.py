"""A figure of what the chosen model keeps of the teacher's score on each task, and on each of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.report.figures.figure import Figure, Json, axis, lines, padded, plain, scatter, upright
from search.runs.trajectories import chosen_student
from search.terminal import format as words

_ROW_HEIGHT, _AROUND = 25, 66
_MOST_ROWS = 40
#: Two standard errors each way hold 95% of what would come of other examples.
_WIDTH = 2.0


@dataclass(frozen=True)
class KeptRow:
    """What is kept on one task or field, with the scores of both."""

    name: str
    is_task: bool
    kept: float
    error: float
    student: float
    teacher: float
    examples: int

    @property
    def hover(self) -> str:
        """The text of a mark."""
        return "<br>".join(
            [
                f"<b>{plain(self.name)}</b>",
                f"keeps {words.percent(self.kept)} ± {words.percent(self.error)}",
                f"accuracy {words.percent(self.student)}, the teacher\u2019s {words.percent(self.teacher)}",
                f"{self.examples:,} examples",
            ]
        )


def kept_rows(summary: dict[str, Any]) -> list[KeptRow]:
    """Return a row for each task that the chosen model was scored by example, followed by its fields.

    Of many fields, those of which least is kept have a row.
    """
    rows = _all_rows(summary)
    room = max(0, _MOST_ROWS - sum(row.is_task for row in rows))
    least = sorted((row for row in rows if not row.is_task), key=lambda row: row.kept)[:room]
    return [row for row in rows if row.is_task or row in least]


def fields_left_out(summary: dict[str, Any]) -> int:
    """Return the number of fields that have no row."""
    return len(_all_rows(summary)) - len(kept_rows(summary))


def _all_rows(summary: dict[str, Any]) -> list[KeptRow]:
    student = chosen_student(summary)
    if student is None:
        return []
    rows = []
    for task, found in student["benchmarks"].items():
        if found.get("kept") is None:
            continue
        rows.append(_row(task, found, is_task=True))
        rows += [
            _row(name, field, is_task=False)
            for name, field in found["fields"].items()
            if field["kept"] is not None
        ]
    return rows


def kept_in_words(summary: dict[str, Any]) -> str:
    """Say in a sentence what the chosen model keeps of the teacher's scores; empty without tasks."""
    shares = [
        (f"{words.percent(row.kept)} ± {words.percent(row.error)}", row.name)
        for row in kept_rows(summary)
        if row.is_task
    ]
    if not shares:
        return ""
    (share, name), *others = shares
    more = "".join(f", {share} on {name}" for share, name in others)
    return f"It keeps {share} of the teacher\u2019s accuracy on {name}{more}."


def kept_figure(summary: dict[str, Any]) -> Figure | None:
    """Draw what the chosen model keeps, with two standard errors; None if no task was scored by example."""
    rows = kept_rows(summary)
    if not rows:
        return None
    ends = [row.kept + side * _WIDTH * row.error for row in rows for side in (-1, 1)]
    return Figure(
        name="kept",
        description="Share of the teacher's accuracy that the chosen model keeps, by task and field.",
        traces=_traces(rows),
        layout={
            "xaxis": axis(
                "share of the teacher\u2019s accuracy", range=padded([1.0, *ends]), tickformat=".0%"
            ),
            "yaxis": axis(
                "",
                range=[len(rows) - 0.4, -0.6],
                tickvals=list(range(len(rows))),
                ticktext=[_name(row) for row in rows],
                showgrid=False,
                ticks="",
            ),
            "shapes": [upright(1.0)],
            "margin": {"l": 20, "r": 20, "t": 22, "b": 44},
        },
        height=_AROUND + _ROW_HEIGHT * len(rows),
    )


def _row(name: str, found: dict[str, Any], *, is_task: bool) -> KeptRow:
    return KeptRow(
        name,
        is_task,
        found["kept"],
        found["kept_error"],
        found["value"],
        found["value"] / found["kept"] if found["kept"] else 0.0,
        found["examples"],
    )


def _traces(rows: list[KeptRow]) -> list[Json]:
    reach = [
        [(row.kept - _WIDTH * row.error, place), (row.kept + _WIDTH * row.error, place)]
        for place, row in enumerate(rows)
    ]
    sizes = [11 if row.is_task else 7 for row in rows]
    marker = {"color": "@accent", "size": sizes}
    points = [(row.kept, float(place)) for place, row in enumerate(rows)]
    return [
        lines(reach, "@accent 0.55", 3),
        scatter(points, [row.hover for row in rows], [""] * len(rows), marker=marker),
    ]


def _name(row: KeptRow) -> str:
    return f"<b>{plain(row.name)}</b>" if row.is_task else plain(row.name)
