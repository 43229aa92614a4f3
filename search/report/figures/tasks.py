"""Small multiples of many tasks: for each a panel with the scores of all models beside the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.report.figures.figure import Figure, Json, axis, lines, padded, plain, scatter, upright
from search.report.tables import metric, score
from search.runs.trajectories import chosen_student, model_row, retrained_entries
from search.terminal import format as words

#: From so many tasks on, a table alone is hard to read.
MANY = 4
#: Models in a panel: the chosen one first, then the others as the table has them.
_MODELS = 8
_ROW_HEIGHT, _AROUND = 20, 56
#: Two standard errors each way hold 95% of what would come of other examples.
_WIDTH = 2.0
Entry = dict[str, Any]


@dataclass(frozen=True)
class TaskPanel:
    """The scores on one task."""

    title: str
    metric: str
    """With an arrow towards the better side."""
    figure: Figure


def task_panels(summary: dict[str, Any]) -> list[TaskPanel]:
    """Return a panel for each task that a model was scored by; none for fewer tasks than ``MANY``."""
    models, teacher = _models(summary), summary["teacher"]
    names = [name for name in teacher["benchmarks"] if any(_scored(one, name) for one in models)]
    if len(names) < MANY:
        return []
    return [
        TaskPanel(name, metric(name, [teacher, *models]), _figure(summary, number, name))
        for number, name in enumerate(names)
    ]


def _models(summary: dict[str, Any]) -> list[Entry]:
    chosen = chosen_student(summary)
    others = [entry for _, entry in retrained_entries(summary) if entry is not chosen]
    found = [entry for entry in ([chosen] if chosen else []) + others if entry["benchmarks"]]
    return found[:_MODELS]


def _scored(entry: Entry, task: str) -> Entry | None:
    """Return the score of a model on a task; None if it has none."""
    found: Entry | None = entry["benchmarks"].get(task)
    return found if found is not None and found["value"] is not None else None


def _figure(summary: dict[str, Any], number: int, task: str) -> Figure:
    models, teacher = _models(summary), _scored(summary["teacher"], task)
    scores = {row: found for row, entry in enumerate(models) if (found := _scored(entry, task))}
    ends = [end for found in scores.values() for end in _ends(found)]
    return Figure(
        name=f"task-{number}",
        description=f"Score of every model on {task}, and the teacher's.",
        traces=_traces(models, scores, summary, task),
        layout={
            "xaxis": axis("", range=padded(ends + ([teacher["value"]] if teacher else [])), nticks=5),
            "yaxis": axis(
                "",
                range=[len(models) - 0.4, -0.6],
                tickvals=list(range(len(models))),
                ticktext=[_name(entry) for entry in models],
                showgrid=False,
                ticks="",
            ),
            "shapes": [upright(teacher["value"])] if teacher else [],
            "margin": {"l": 10, "r": 14, "t": 8, "b": 30},
        },
        height=_AROUND + _ROW_HEIGHT * len(models),
    )


def _ends(found: Entry) -> tuple[float, float]:
    reach = _WIDTH * (found["error"] or 0.0)
    return found["value"] - reach, found["value"] + reach


def _traces(models: list[Entry], scores: dict[int, Entry], summary: dict[str, Any], task: str) -> list[Json]:
    chosen = chosen_student(summary)
    bars = [[(end, float(row)) for end in _ends(found)] for row, found in scores.items()]
    colours = ["@accent" if models[row] is chosen else "@soft" for row in scores]
    return [
        lines(bars, "@soft 0.5", 3),
        scatter(
            [(found["value"], float(row)) for row, found in scores.items()],
            [_hover(models[row], found, summary, task) for row, found in scores.items()],
            [model_row(models[row]) for row in scores],
            marker={"color": colours, "size": 8},
        ),
    ]


def _hover(entry: Entry, found: Entry, summary: dict[str, Any], task: str) -> str:
    teacher = score(_scored(summary["teacher"], task))
    return f"<b>{plain(_name(entry))}</b><br>{plain(score(found))}, the teacher\u2019s {plain(teacher)}"


def _name(entry: Entry) -> str:
    return words.origin("random-weights") if entry["origin"] == "random-weights" else str(entry["label"])
