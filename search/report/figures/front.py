"""The figure of the Pareto front: loss against cost of every candidate at every rung and after retraining."""

from __future__ import annotations

from typing import Any

from search.report.figures import figure as marks
from search.report.figures.figure import (
    Figure,
    Json,
    Label,
    Points,
    View,
    axis,
    level,
    lines,
    padded,
    plain,
    scatter,
)
from search.runs.summary import CostAxis, bounds_of, cost_axis, farthest_near, over_labels
from search.runs.trajectories import Role, Trajectory, TrajectoryPoint, top_rung, trajectories
from search.terminal import format as words

#: If the candidates take up less than this share of the width, a view without the teacher is added.
_NARROW = 0.25

#: A candidate, one of its evaluations, and the cost there.
Placed = tuple[Trajectory, TrajectoryPoint, float]


def front_figure(summary: dict[str, Any]) -> Figure | None:
    """Draw the fronts of the top rung and of the retrained models; None if nothing was evaluated."""
    cost = cost_axis(summary)
    paths = {
        one: [(one, point, x) for point in one.points if (x := cost.of(point.evaluation)) is not None]
        for one in trajectories(summary)
    }
    placed = [one for path in paths.values() for one in path]
    if not placed:
        return None
    teacher = _teacher(summary, cost)
    traces = [
        *_connecting_lines(paths),
        *_fronts(summary, placed),
        *_marks(placed, cost, top_rung(summary)),
        *_teacher_traces(teacher),
    ]
    return Figure(
        name="front",
        description=f"Loss against {cost.name} of every candidate at every rung and after retraining.",
        traces=traces,
        layout={
            "xaxis": axis(f"{cost.title}  (less is better)"),
            "yaxis": axis("loss, nats per token", nticks=8),
            "shapes": [level(teacher[1]), *_bound(summary, cost)],
        },
        labels=_labels(paths, teacher),
        views=_views(summary, placed, teacher),
        height=500,
    )


def _bound(summary: dict[str, Any], cost: CostAxis) -> list[Json]:
    """Return a vertical line at the bound on the cost, if there is one."""
    line = {"color": "@ink 0.5", "width": 1, "dash": "dash"}
    ends = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": line, "layer": "below"}
    most = bounds_of(summary).get(cost.name)
    return [{**ends, "x0": most, "x1": most}] if most is not None else []


def _teacher(summary: dict[str, Any], cost: CostAxis) -> tuple[float | None, float, str]:
    """Return the teacher's cost (None if not measured), loss and hover text."""
    entry = summary["teacher"]
    text = f"<b>teacher</b><br>{plain(entry['id'])}<br>{plain(words.sizes(entry['architecture']))}"
    loss = f"<br>loss {words.nats(entry['loss'])} nats/token"
    return cost.of(entry), float(entry["loss"]), text + loss


def _teacher_traces(teacher: tuple[float | None, float, str]) -> list[Json]:
    x, loss, text = teacher
    if x is None:
        return []
    mark = {"symbol": "star", "size": 14, "color": "@ink"}
    return [scatter([(x, loss)], [text], ["model-teacher"], marker=mark)]


def _connecting_lines(paths: dict[Trajectory, list[Placed]]) -> list[Json]:
    """Return thin lines that join the evaluations of each architecture."""

    def points_of(*roles: Role) -> list[Points]:
        return [[(x, point.loss) for _, point, x in path] for key, path in paths.items() if key.role in roles]

    return [
        lines(points_of(Role.CANDIDATE), "@faint 0.3"),
        lines(points_of(Role.BASELINE), "@soft 0.55", line={"dash": "dot"}),
        lines(points_of(Role.PROMOTED, Role.CHOSEN), "@accent 0.6", 1.4),
    ]


def _marks(placed: list[Placed], cost: CostAxis, top: int | None) -> list[Json]:
    """Return markers: one trace a stage for plain candidates, one trace each for the other models."""
    crowd: dict[str, list[Placed]] = {}
    traces: list[Json] = []
    for trajectory, point, x in placed:
        if trajectory.role == Role.CANDIDATE:
            crowd.setdefault(point.stage, []).append((trajectory, point, x))
        else:
            text = marks.hover(trajectory, point, _in_words(x, cost))
            traces.append(
                scatter([(x, point.loss)], [text], [point.row], marker=marks.marker(trajectory, point.stage))
            )
    return [_crowd(points, cost, stage == f"rung {top}") for stage, points in crowd.items()] + traces


def _crowd(placed: list[Placed], cost: CostAxis, at_top: bool) -> Json:
    mark = {"size": 7, "color": "@faint 0.75"} if at_top else {"size": 4.5, "color": "@faint 0.45"}
    texts = [marks.hover(trajectory, point, _in_words(x, cost)) for trajectory, point, x in placed]
    rows = [point.row for _, point, _ in placed]
    return scatter([(x, point.loss) for _, point, x in placed], texts, rows, marker=mark)


def _in_words(value: float, cost: CostAxis) -> str:
    return "" if cost.name == "parameters" else f"{cost.name} {cost.in_words(value)}"


def _fronts(summary: dict[str, Any], placed: list[Placed]) -> list[Json]:
    """Return staircase lines through the fronts of the top rung and of the retrained models."""
    top, members = top_rung(summary), set(summary["pareto"])
    at_top = [
        (x, point.loss)
        for trajectory, point, x in placed
        if point.stage == f"rung {top}" and trajectory.label in members
    ]
    over = over_labels(summary)
    final = [
        (x, point.loss)
        for trajectory, point, x in placed
        if point is trajectory.retrained and trajectory.label not in over
    ]
    stairs = {"shape": "hv"}
    return [
        lines([sorted(at_top)], "@accent 0.45", 1.5, line={**stairs, "dash": "dot"}),
        lines([undominated(final)], "@accent", 1.8, line=stairs),
    ]


def undominated(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto-optimal points (both values minimised), sorted by the first value."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def _labels(paths: dict[Trajectory, list[Placed]], teacher: tuple[float | None, float, str]) -> list[Label]:
    """Return labels, most important first: the teacher, then models by role at their last evaluation."""
    found = (
        [Label(teacher[0], teacher[1], "teacher", "teacher", "@ink", True)] if teacher[0] is not None else []
    )
    order = [Role.CHOSEN, Role.PROMOTED, Role.BASELINE]
    for trajectory, path in sorted(
        ((key, path) for key, path in paths.items() if path and key.role in order),
        key=lambda item: order.index(item[0].role),
    ):
        _, point, x = path[-1]
        found.append(marks.label(trajectory, x, point.loss))
    return found


def _views(
    summary: dict[str, Any], placed: list[Placed], teacher: tuple[float | None, float, str]
) -> list[View]:
    """Return the views, those that zoom in on the late evaluations first."""
    top = f"rung {top_rung(summary)}"
    late = [point.loss for one, point, _ in placed if point.stage == top or point is one.retrained]
    late = [*(loss for loss in late if loss <= farthest_near(late, teacher[1])), teacher[1]]
    every = [*(point.loss for _, point, _ in placed), teacher[1]]
    costs = [x for _, _, x in placed]
    whole = padded(costs if teacher[0] is None else [*costs, teacher[0]], 0.08)
    close = padded(costs, 0.25)
    first = View("Top rung and retrained", {"xaxis.range": whole, "yaxis.range": padded(late)})
    found = [View("All rungs", {"xaxis.range": whole, "yaxis.range": padded(every)})]
    if max(late) < 0.8 * max(every):
        found.insert(0, first)
    if close[1] - close[0] < _NARROW * (whole[1] - whole[0]):
        found.insert(0, View("Candidates alone", {"xaxis.range": close, "yaxis.range": padded(late)}))
    return found
