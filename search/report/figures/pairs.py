"""Fronts along any two objectives, which the front of the report has a menu for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from search.report.figures import figure as marks
from search.report.figures.figure import Figure, Json, Label, axis, lines, plain, scatter
from search.report.figures.front import front_figure, undominated
from search.runs.summary import CostAxis, cost_axis, over_labels
from search.runs.trajectories import Role, Trajectory, TrajectoryPoint, top_rung, trajectories
from search.terminal import format as words

_LOSS = CostAxis("loss", "nats per token")

#: A candidate, one of its evaluations, and its place.
Placed = tuple[Trajectory, TrajectoryPoint, float, float]


def front_with_menu(summary: dict[str, Any]) -> Figure | None:
    """Return the front of loss and cost, with those of the other pairs of objectives as its alternatives."""
    first = front_figure(summary)
    if first is None:
        return None
    cost = cost_axis(summary)
    others = {_title(x, y): pair_figure(summary, x, y) for x, y in _pairs(summary, cost)}
    found = {name: figure for name, figure in others.items() if figure is not None}
    return replace(first, title=_title(cost, _LOSS), alternatives=found)


def pair_figure(summary: dict[str, Any], x: CostAxis, y: CostAxis) -> Figure | None:
    """Draw every evaluation along two objectives; None if none has both.

    Args:
        summary: of a run.
        x: the objective across.
        y: the objective up.
    """
    placed = [
        (path, point, across, up)
        for path in trajectories(summary)
        for point in path.points
        if (across := x.of(point.evaluation)) is not None and (up := y.of(point.evaluation)) is not None
    ]
    if not placed:
        return None
    return Figure(
        name="front",
        description=f"{y.name} against {x.name} of every candidate at every rung and after retraining.",
        traces=[*_fronts(summary, placed), *_marks(placed, x, y), *_teacher(summary, x, y)],
        layout={
            "xaxis": axis(f"{x.title}  (less is better)"),
            "yaxis": axis(f"{y.title}  (less is better)", nticks=8),
        },
        labels=_labels(placed),
        height=500,
    )


def _pairs(summary: dict[str, Any], cost: CostAxis) -> Iterator[tuple[CostAxis, CostAxis]]:
    """Yield every pair of objectives but that of cost and loss, loss upwards where it is one of them."""
    others = [CostAxis(one["name"], one["unit"]) for one in summary["objectives"] if one["name"] != "loss"]
    yield from ((other, _LOSS) for other in others if other != cost)
    yield from combinations(others, 2)


def _title(x: CostAxis, y: CostAxis) -> str:
    return f"{y.name} and {x.name}"


def _teacher(summary: dict[str, Any], x: CostAxis, y: CostAxis) -> list[Json]:
    entry = summary["teacher"]
    across, up = x.of(entry), y.of(entry)
    if across is None or up is None:
        return []
    mark = {"symbol": "star", "size": 14, "color": "@ink"}
    return [
        scatter([(across, up)], [f"<b>teacher</b><br>{plain(entry['id'])}"], ["model-teacher"], marker=mark)
    ]


def _marks(placed: list[Placed], x: CostAxis, y: CostAxis) -> list[Json]:
    """Return markers: one trace for plain candidates, one trace for each other model."""
    crowd = [one for one in placed if one[0].role == Role.CANDIDATE]
    others = [one for one in placed if one[0].role != Role.CANDIDATE]
    faint = scatter(
        [(across, up) for _, _, across, up in crowd],
        [_hover(one, x, y) for one in crowd],
        [point.row for _, point, _, _ in crowd],
        marker={"size": 6, "color": "@faint 0.6"},
    )
    return [faint, *(_mark(one, x, y) for one in others)]


def _mark(one: Placed, x: CostAxis, y: CostAxis) -> Json:
    path, point, across, up = one
    return scatter([(across, up)], [_hover(one, x, y)], [point.row], marker=marks.marker(path, point.stage))


def _hover(one: Placed, x: CostAxis, y: CostAxis) -> str:
    path, point, across, up = one
    parts = [f"{y.name} {y.in_words(up)}", f"{x.name} {x.in_words(across)}"]
    sizes = plain(words.sizes(path.architecture))
    return "<br>".join([f"<b>{plain(path.label)}</b>", sizes, plain(point.stage), *map(plain, parts)])


def _fronts(summary: dict[str, Any], placed: list[Placed]) -> list[Json]:
    """Return staircase lines through the fronts of the top rung and of the retrained models."""
    over, top = over_labels(summary), f"rung {top_rung(summary)}"
    within = [one for one in placed if one[0].label not in over]
    at_top = [(across, up) for _, point, across, up in within if point.stage == top]
    final = [(across, up) for path, point, across, up in within if point is path.retrained]
    stairs = {"shape": "hv"}
    return [
        lines([undominated(at_top)], "@accent 0.45", 1.5, line={**stairs, "dash": "dot"}),
        lines([undominated(final)], "@accent", 1.8, line=stairs),
    ]


def _labels(placed: list[Placed]) -> list[Label]:
    """Return labels of the retrained models, the chosen one first."""
    final = [one for one in placed if one[1] is one[0].retrained]
    order = [Role.CHOSEN, Role.PROMOTED, Role.BASELINE]
    final = sorted((one for one in final if one[0].role in order), key=lambda one: order.index(one[0].role))
    return [marks.label(path, across, up) for path, _, across, up in final]
