"""Figures as data: Plotly traces and layout with named colours, and the marks that all figures share.

A colour is written ``@accent`` or, with an opacity, ``@accent 0.4``. The page replaces it by the CSS custom
property of that name, again whenever the theme changes. Text from a summary passes through ``plain``, since
Plotly interprets a subset of HTML in texts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.runs.trajectories import RETRAINING, Role, Trajectory, TrajectoryPoint
from search.terminal import format as words
from search.terminal.format import visible

Json = dict[str, Any]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Label:
    """A text beside a point in data coordinates; the page finds a free place for it.

    Narrow pages show ``short`` instead of ``text``.
    """

    x: float
    y: float
    text: str
    short: str
    colour: str = "@soft"
    strong: bool = False


@dataclass(frozen=True)
class View:
    """A choice of axis ranges that the page offers above the figure, starting with the first.

    ``settings`` holds layout settings by path, such as ``yaxis.range``.
    """

    name: str
    settings: Json


@dataclass(frozen=True)
class Figure:
    """One figure of the report.

    Attributes:
        name: HTML id within the page.
        description: alternative text for screen readers.
        traces, layout: Plotly data with named colours.
        labels: direct labels, most important first.
        labels_beside: whether the labels form a column to the right of the axes, sorted by height.
        views: axis ranges to choose from; empty for a figure with one view.
        narrow: layout settings by path for narrow pages.
        height: height in pixels.
        title: its name in the menu, if there are alternatives.
        alternatives: other figures in the same place, by name, which the page has a menu for.
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
    title: str = ""
    alternatives: Mapping[str, Figure] = field(default_factory=dict)

    def data(self) -> Json:
        """Return the figure as JSON-ready data for the page's script."""
        return {
            "traces": self.traces,
            "layout": {**_base_layout(), **self.layout, "height": self.height},
            "labels": [vars(label) for label in self.labels],
            "labelsBeside": self.labels_beside,
            "views": [vars(view) for view in self.views],
            "narrow": self.narrow,
            "title": self.title,
            "alternatives": [{"name": name, **one.data()} for name, one in self.alternatives.items()],
        }


def plain(text: object) -> str:
    """Escape text from a summary so that Plotly shows it literally."""
    return html.escape(visible(str(text)), quote=False)


def axis(title: str, **more: Any) -> Json:
    """Return an axis with a thin grid, no zero line, and its title in the soft colour."""
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
    """Return markers with hover texts.

    Args:
        points: positions of the markers.
        texts: escaped hover texts: one for all markers, or one for each.
        rows: HTML ids of the table rows to which a click on each marker leads; empty for none.
        more: further Plotly settings of the trace.
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
    """Return several lines as one trace, with gaps between them."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for path in paths:
        xs += [*(x for x, _ in path), None]
        ys += [*(y for _, y in path), None]
    line = {"color": colour, "width": width, **more.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": line, "hoverinfo": "skip", **more}


def level(y: float) -> Json:
    """Return a dotted horizontal line across the figure, which marks the teacher's loss."""
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


def upright(x: float) -> Json:
    """Return a dotted vertical line through the figure."""
    line = {"color": "@ink 0.5", "width": 1, "dash": "dot"}
    return {
        "type": "line",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": line,
        "layer": "below",
    }


def padded(values: Iterable[float], share: float = 0.06) -> list[float]:
    """Return the range of ``values`` with a margin on both sides; never empty."""
    known = list(values)
    low, high = min(known), max(known)
    margin = share * (high - low) or share * abs(high) or 1.0
    return [low - margin, high + margin]


def round_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return round values between ``low`` and ``high`` (both positive), evenly spread on a log axis."""
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
    """Return the name beside a model's mark: what a baseline does, or the label of any other model."""
    if trajectory.origin not in _SYMBOLS:
        return trajectory.label
    method = words.origin(trajectory.origin)
    return method if trajectory.role == Role.BASELINE else f"{trajectory.label} ({method})"


def label(trajectory: Trajectory, x: float, y: float) -> Label:
    """Return the direct label of a model that has a role beyond candidate."""
    text, chosen = plain(name(trajectory)), trajectory.role == Role.CHOSEN
    if trajectory.role == Role.BASELINE:
        return Label(x, y, text, text, "@soft")
    return Label(x, y, f"chosen: {text}" if chosen else text, trajectory.role.value, "@accent", chosen)


def dash(origin: str) -> str:
    """Return the line style of a baseline; solid for anything else."""
    return _DASHES.get(origin, "solid")


def marker(trajectory: Trajectory, stage: str) -> Json:
    """Return the marker of a model at a stage: large after retraining, small before."""
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
    """Return the hover text of an evaluation; ``cost`` is its value on the other axis, in words."""
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
