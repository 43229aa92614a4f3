"""The figure of parallel coordinates, which shows the sizes that good candidates share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.report.figures import figure as marks
from search.report.figures.figure import Figure, Json, axis, plain, scatter
from search.runs.summary import CostAxis, cost_axis
from search.runs.trajectories import Role, Trajectory, TrajectoryPoint, top_rung, trajectories
from search.terminal import format as words

#: Colours of the quarters of the candidates, from the best losses to the worst.
_SHADES = ("@accent 0.75", "@accent 0.38", "@faint 0.55", "@faint 0.3")


@dataclass(frozen=True)
class _Coordinate:
    """One vertical axis: its name, a shorter one, its values by candidate, and a formatter of values."""

    name: str
    short: str
    values: list[float]
    format_value: Callable[[float], str]

    def height(self, index: int) -> float:
        """Return a candidate's value scaled to between 0 and 1; one half if all values are equal."""
        low, high = min(self.values), max(self.values)
        return round((self.values[index] - low) / (high - low), 4) if high > low else 0.5


def sizes_figure(summary: dict[str, Any]) -> Figure | None:
    """Draw sizes, cost and loss of every candidate of the top rung; None if there are fewer than two."""
    stage = f"rung {top_rung(summary)}"
    found = [(path, point) for path in trajectories(summary) if (point := path.at(stage)) is not None]
    if len(found) < 2:
        return None
    coordinates = _coordinates(found, cost_axis(summary), stage)
    last = len(coordinates) - 1
    return Figure(
        name="sizes",
        description="Parallel coordinates of the sizes, the cost and the loss of every candidate.",
        traces=_traces(found, coordinates),
        layout={
            "xaxis": axis(
                "",
                tickangle=0,
                tickvals=list(range(len(coordinates))),
                ticktext=[plain(coordinate.name) for coordinate in coordinates],
                side="top",
                range=[-0.35, last + 0.75],
                showgrid=False,
                tickfont={"color": "@ink", "size": 12},
                showline=False,
                fixedrange=True,
            ),
            "yaxis": {"visible": False, "range": [-0.08, 1.06], "fixedrange": True},
            "shapes": [_vertical(place) for place in range(len(coordinates))],
            "annotations": [text for place, one in enumerate(coordinates) for text in _ticks(place, one)],
            "margin": {"l": 16, "r": 16, "t": 44, "b": 14},
        },
        narrow={"xaxis.ticktext": [plain(coordinate.short) for coordinate in coordinates]},
        height=380,
    )


def _coordinates(
    found: list[tuple[Trajectory, TrajectoryPoint]], cost: CostAxis, stage: str
) -> list[_Coordinate]:
    def sizes(key: str, name: str, short: str | None = None) -> _Coordinate:
        values = [float(path.architecture[key]) for path, _ in found]
        return _Coordinate(name, short or name, values, lambda value: f"{value:g}")

    present = [key for key in words.AXES if all(key in path.architecture for path, _ in found)]
    axes = [sizes(key, words.AXES[key], "KV" if key == "kv_heads" else None) for key in present]
    axes.append(sizes("layers", "layers"))
    costs = [cost.of(point.evaluation) for _, point in found]
    known = [value for value in costs if value is not None]
    if len(known) == len(costs):
        axes.append(_Coordinate(cost.title, cost.unit or "size", known, words.quantity))
    return [*axes, _Coordinate(f"loss, {stage}", "loss", [point.loss for _, point in found], words.nats)]


def _traces(found: list[tuple[Trajectory, TrajectoryPoint]], coordinates: list[_Coordinate]) -> list[Json]:
    """Return one line per candidate, worst first so that the best lie on top; the chosen one is last."""
    order = sorted(range(len(found)), key=lambda index: -found[index][1].loss)
    traces = []
    for place, index in enumerate(order):
        path, point = found[index]
        quarter = 3 - min(3, 4 * place // len(order))
        chosen = path.role == Role.CHOSEN
        colour = "@accent" if chosen else _SHADES[quarter]
        line = {"color": colour, "width": 3 if chosen else 1.4, "dash": marks.dash(path.origin)}
        points = [(float(at), one.height(index)) for at, one in enumerate(coordinates)]
        text = marks.hover(path, point, "")
        traces.append(
            scatter(
                points,
                text,
                [point.row] * len(points),
                mode="lines+markers",
                line=line,
                marker={"size": 4, "color": colour},
            )
        )
    chosen_last = sorted(
        zip(order, traces, strict=True), key=lambda item: found[item[0]][0].role == Role.CHOSEN
    )
    return [trace for _, trace in chosen_last]


def _vertical(place: int) -> Json:
    line = {"color": "@rule", "width": 1}
    return {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": line, "layer": "below"}


def _ticks(place: int, coordinate: _Coordinate) -> list[Json]:
    """Return tick labels: every value of an axis with at most six, else the two ends."""
    distinct = sorted(set(coordinate.values))
    shown = distinct if len(distinct) <= 6 else [distinct[0], distinct[-1]]
    low, high = distinct[0], distinct[-1]
    return [
        {
            "x": place,
            "y": (value - low) / (high - low) if high > low else 0.5,
            "text": plain(coordinate.format_value(value)),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 7,
            "font": {"size": 11, "color": "@soft"},
            "bgcolor": "@paper 0.75",
            "borderpad": 1,
        }
        for value in shown
    ]
