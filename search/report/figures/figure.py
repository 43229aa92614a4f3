"""A figure as data: Plotly traces and layout whose colours are names that the page resolves.

A colour is written ``@accent`` or, with an opacity, ``@accent 0.4``; the page replaces it by the custom
property of that name in its style sheet, and does so again when the theme changes. Text from a summary
passes through ``plain``, since Plotly reads a subset of HTML in texts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.runs.trajectories import RETRAINING, Role, Trajectory, TrajectoryPoint
from search.terminal import format as words
from search.terminal.format import visible

Json = dict[str, Any]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Label:
    """A text beside a point, in data coordinates; the page finds a free place for it.

    ``short`` stands in where the page is narrow.
    """

    x: float
    y: float
    text: str
    short: str
    colour: str = "@soft"
    strong: bool = False


@dataclass(frozen=True)
class View:
    """A choice of axis ranges offered above the figure; the first of several is shown at the start.

    ``settings`` holds layout settings by path, such as ``yaxis.range``.
    """

    name: str
    settings: Json


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: identifier within the page.
        description: what the figure shows, for those who cannot see it.
        traces, layout: as Plotly takes them, colours by name.
        labels: direct labels, the most important first.
        labels_beside: the labels stand in a column to the right of the axes, in the order of their heights.
        views: ranges to choose from; none for a figure with one view.
        narrow: layout settings by path that hold where the page is narrow.
        height: in pixels.
    """

    name: str
    description: str
    traces: list[Json]
    layout: Json
    labels: list[Label] = field(default_factory=list)
    labels_beside: bool = False
    views: list[View] = field(default_factory=list)
    narrow: Json = field(default_factory=dict)
    height: int = 420

    def data(self) -> Json:
        """The figure as the page's script reads it."""
        return {
            "traces": self.traces,
            "layout": {**_base_layout(), **self.layout, "height": self.height},
            "labels": [vars(label) for label in self.labels],
            "labelsBeside": self.labels_beside,
            "views": [vars(view) for view in self.views],
            "narrow": self.narrow,
        }


def plain(text: object) -> str:
    """Text of a summary as Plotly shows it literally."""
    return html.escape(visible(str(text)), quote=False)


def axis(title: str, **more: Any) -> Json:
    """A calm axis: thin grid, no zero line, its title in the soft colour."""
    return {
        "title": {"text": plain(title), "font": {"color": "@soft", "size": 12}, "standoff": 10},
        "gridcolor": "@grid",
        "linecolor": "@rule",
        "tickfont": {"color": "@soft", "size": 11.5},
        "tickcolor": "@rule",
        "zeroline": False,
        "automargin": True,
        **more,
    }


def scatter(points: Points, texts: str | Sequence[str], rows: Sequence[str], **more: Any) -> Json:
    """Markers with a hover text each.

    Args:
        points: where they are.
        texts: already plain; one for all marks, or one for each.
        rows: of the tables, to which a click on each leads; none for marks that have no row.
        more: as Plotly takes it.
    """
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "text": texts if isinstance(texts, str) else list(texts),
        "customdata": list(rows),
        "hoverinfo": "text",
        "cliponaxis": True,
        **more,
    }


def lines(paths: Iterable[Points], colour: str, width: float = 1, **more: Any) -> Json:
    """Several lines as one trace, with gaps between them."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for path in paths:
        xs += [*(x for x, _ in path), None]
        ys += [*(y for _, y in path), None]
    line = {"color": colour, "width": width, **more.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": line, "hoverinfo": "skip", **more}


def level(y: float) -> Json:
    """A dotted line across the figure: the teacher's loss."""
    line = {"color": "@ink 0.5", "width": 1, "dash": "dot"}
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": line,
        "layer": "below",
    }


def padded(values: Iterable[float], share: float = 0.06) -> list[float]:
    """The range of ``values`` with a margin on both sides, never empty."""
    known = list(values)
    low, high = min(known), max(known)
    margin = share * (high - low) or share * abs(high) or 1.0
    return [low - margin, high + margin]


def round_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round values between ``low`` and ``high`` (both above nought), evenly spread on a log axis."""
    for steps in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 4, 6), (1, 2, 4), (1, 3), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks


def _base_layout() -> Json:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "@font", "size": 12.5, "color": "@ink"},
        "showlegend": False,
        "hovermode": "closest",
        "hoverdistance": 14,
        "hoverlabel": {
            "bgcolor": "@panel",
            "bordercolor": "@rule",
            "font": {"family": "@font", "size": 12.5, "color": "@ink"},
            "align": "left",
        },
        "margin": {"l": 56, "r": 20, "t": 14, "b": 50},
        "dragmode": "zoom",
    }


_SYMBOLS = {
    "uniform": "square",
    "mlp-heads": "diamond",
    "depth": "triangle-down",
    "random-weights": "x-thin",
}
_DASHES = {"uniform": "dash", "mlp-heads": "dashdot", "depth": "dot", "random-weights": "longdash"}


def name(trajectory: Trajectory) -> str:
    """How a model is called beside its mark: a baseline by its idea, others by their label."""
    if trajectory.origin not in _SYMBOLS:
        return trajectory.label
    idea = words.origin(trajectory.origin)
    return idea if trajectory.role == Role.BASELINE else f"{trajectory.label} ({idea})"


def label(trajectory: Trajectory, x: float, y: float) -> Label:
    """The direct label of a model that is no mere candidate."""
    text, chosen = plain(name(trajectory)), trajectory.role == Role.CHOSEN
    if trajectory.role == Role.BASELINE:
        return Label(x, y, text, text, "@soft")
    return Label(x, y, f"chosen: {text}" if chosen else text, trajectory.role.value, "@accent", chosen)


def dash(origin: str) -> str:
    """The line style of a baseline, solid for anything else."""
    return _DASHES.get(origin, "solid")


def marker(trajectory: Trajectory, stage: str) -> Json:
    """The marker of a model at a stage: filled and large after retraining, small before."""
    final = stage == RETRAINING
    if trajectory.role == Role.CHOSEN:
        ring = {"color": "@accent 0.3", "width": 7} if final else {"color": "@accent", "width": 1.5}
        return {
            "symbol": "circle",
            "color": "@accent" if final else "@paper",
            "size": 13 if final else 7,
            "line": ring,
        }
    if trajectory.role == Role.PROMOTED:
        line = {"color": "@accent", "width": 1.5}
        return {
            "symbol": "circle",
            "color": "@accent" if final else "@paper",
            "size": 10 if final else 7,
            "line": line,
        }
    symbol = _SYMBOLS.get(trajectory.origin, "circle")
    line = {"color": "@soft", "width": 2 if final else 1.2}
    return {"symbol": symbol, "color": "@paper", "size": 10 if final else 7, "line": line}


def hover(trajectory: Trajectory, point: TrajectoryPoint, cost: str) -> str:
    """Hover text of one evaluation: name, architecture, loss, and ``cost``, the second axis in words."""
    rows = [
        f"<b>{plain(trajectory.label)}</b>",
        plain(words.sizes(trajectory.architecture)),
        f"layers kept: {plain(words.layer_ranges(trajectory.architecture['kept_layers']))}",
        f"{words.count(trajectory.parameters)} parameters",
        f"{plain(point.stage)}: loss {words.nats(point.loss)} nats/token"
        + (f", {plain(cost)}" if cost else ""),
        f"proposed by: {plain(words.origin(trajectory.origin))}",
    ]
    return "<br>".join(rows)
