"""Parallel coordinates: which sizes the good candidates share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.report.figures import figure as marks
from search.report.figures.figure import Figure, Json, axis, plain, scatter
from search.runs.summary import CostAxis, cost_axis
from search.runs.trajectories import Role, Trajectory, TrajectoryPoint, top_rung, trajectories
from search.terminal import format as words

#: Shades for the quarters of the candidates, from the best losses to the worst.
_SHADES = ("@accent 0.75", "@accent 0.38", "@faint 0.55", "@faint 0.3")


@dataclass(frozen=True)
class _Coordinate:
    """One vertical axis: its name, a shorter one, its values by candidate, how a value is written."""

    name: str
    short: str
    values: list[float]
    write: Callable[[float], str]

    def height(self, index: int) -> float:
        """The value of a candidate between 0 and 1; one half where all are equal."""
        low, high = min(self.values), max(self.values)
        return round((self.values[index] - low) / (high - low), 4) if high > low else 0.5


def sizes_figure(summary: dict[str, Any]) -> Figure | None:
    """Sizes, cost and loss of every candidate of the top rung; None when there are fewer than two."""
    stage = f"rung {top_rung(summary)}"
    ways = [(way, stop) for way in trajectories(summary) if (stop := way.at(stage)) is not None]
    if len(ways) < 2:
        return None
    coordinates = _coordinates(ways, cost_axis(summary), stage)
    last = len(coordinates) - 1
    return Figure(
        name="sizes",
        description="Parallel coordinates of the sizes, the cost and the loss of every candidate.",
        traces=_traces(ways, coordinates),
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
    ways: list[tuple[Trajectory, TrajectoryPoint]], cost: CostAxis, stage: str
) -> list[_Coordinate]:
    def sizes(key: str, name: str, short: str | None = None) -> _Coordinate:
        return _Coordinate(
            name, short or name, [float(way.architecture[key]) for way, _ in ways], lambda value: f"{value:g}"
        )

    present = [key for key in words.AXES if all(key in way.architecture for way, _ in ways)]
    found = [sizes(key, words.AXES[key], "KV" if key == "kv_heads" else None) for key in present]
    found.append(sizes("layers", "layers"))
    costs = [cost.of(stop.evaluation) for _, stop in ways]
    known = [value for value in costs if value is not None]
    if len(known) == len(costs):
        found.append(_Coordinate(cost.title, cost.unit or "size", known, words.quantity))
    return [*found, _Coordinate(f"loss, {stage}", "loss", [stop.loss for _, stop in ways], words.nats)]


def _traces(ways: list[tuple[Trajectory, TrajectoryPoint]], coordinates: list[_Coordinate]) -> list[Json]:
    """The worst candidates first, so that the best lie on top; the chosen one last and strongest."""
    order = sorted(range(len(ways)), key=lambda index: -ways[index][1].loss)
    traces = []
    for place, index in enumerate(order):
        way, stop = ways[index]
        quarter = 3 - min(3, 4 * place // len(order))
        chosen = way.role == Role.CHOSEN
        colour = "@accent" if chosen else _SHADES[quarter]
        line = {"color": colour, "width": 3 if chosen else 1.4, "dash": marks.dash(way.origin)}
        points = [(float(at), one.height(index)) for at, one in enumerate(coordinates)]
        text = marks.hover(way, stop, "")
        traces.append(
            scatter(
                points,
                text,
                [stop.row] * len(points),
                mode="lines+markers",
                line=line,
                marker={"size": 4, "color": colour},
            )
        )
    chosen_last = sorted(
        zip(order, traces, strict=True), key=lambda item: ways[item[0]][0].role == Role.CHOSEN
    )
    return [trace for _, trace in chosen_last]


def _vertical(place: int) -> Json:
    line = {"color": "@rule", "width": 1}
    return {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": line, "layer": "below"}


def _ticks(place: int, coordinate: _Coordinate) -> list[Json]:
    """Each value of an axis with few of them, else the two ends."""
    distinct = sorted(set(coordinate.values))
    shown = distinct if len(distinct) <= 6 else [distinct[0], distinct[-1]]
    low, high = distinct[0], distinct[-1]
    return [
        {
            "x": place,
            "y": (value - low) / (high - low) if high > low else 0.5,
            "text": plain(coordinate.write(value)),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 7,
            "font": {"size": 11, "color": "@soft"},
            "bgcolor": "@paper 0.75",
            "borderpad": 1,
        }
        for value in shown
    ]
