"""A figure of the report as an object of Plotly's, for pages without the report's style sheet and script.

Colours and fonts are those of the report's light theme; direct labels stand at fixed places.
"""

from __future__ import annotations

import math
import re
from functools import cache
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go

from search.report.figures.figure import Figure, Json, Label

_COLOUR = re.compile(r"@([a-z]+)(?: ([0-9.]+))?")
#: Keys whose values are texts that people read, which may look like a colour.
_TEXTS = ("text", "hovertext", "ticktext", "name")
_LINE_PIXELS = 15


def plotly_object(figure: Figure, title: str) -> go.Figure:
    """The figure with its first view, on the light theme's paper.

    Args:
        figure: of the report.
        title: above it, already plain.
    """
    drawn = _resolved(figure.data())
    layout: Json = drawn["layout"]
    for path, value in (figure.views[0].settings if figure.views else {}).items():
        part, key = path.split(".")
        layout[part][key] = value
    margin = {"l": 56, "r": 20, "b": 50, **layout.get("margin", {}), "t": 56}
    if figure.labels_beside:
        margin["r"] = 40 + 7 * max((len(label.text) for label in figure.labels), default=0)
    place = _beside if figure.labels_beside else _around
    layout |= {
        "annotations": [_resolved(one) for one in place(figure, layout)],
        "margin": margin,
        "paper_bgcolor": _light()["paper"],
        "plot_bgcolor": _light()["paper"],
        "title": {"text": title, "font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left"},
        "template": {},
    }
    return go.Figure(data=drawn["traces"], layout=layout)


@cache
def _light() -> dict[str, str]:
    """The custom properties of the light theme, by name."""
    style = files("search.report").joinpath("page", "page.css").read_text(encoding="utf-8")
    theme = style[style.index(":root") : style.index("}")]
    return {name: value.strip() for name, value in re.findall(r"--([a-z]+):([^;]*);", theme)}


def _resolved(value: Any, key: str = "") -> Any:
    """The value with every name of a colour or font replaced."""
    if isinstance(value, dict):
        return {name: _resolved(item, name) for name, item in value.items()}
    if key in _TEXTS:
        return value
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    match = _COLOUR.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[1] not in _light():
        return value
    colour = _light()[match[1]]
    if match[2] is None:
        return colour
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {match[2]})"


def _text(label: Label, **more: Any) -> Json:
    text = f"<b>{label.text}</b>" if label.strong else label.text
    font = {"size": 12, "color": label.colour}
    return {"text": text, "showarrow": False, "yanchor": "middle", "font": font, **more}


def _around(figure: Figure, layout: Json) -> list[Json]:
    """Each label to the right of its point; to the left in the last third of the width."""
    low, high = layout["xaxis"].get("range") or (-math.inf, math.inf)
    bound = low + 2 * (high - low) / 3 if math.isfinite(high - low) else math.inf
    return [
        _text(
            label,
            x=label.x,
            y=_on_axis(label.y, layout),
            xanchor="right" if label.x > bound else "left",
            xshift=-10 if label.x > bound else 10,
        )
        for label in figure.labels
    ]


def _beside(figure: Figure, layout: Json) -> list[Json]:
    """Labels in a column to the right, in the order of their heights and no closer than a line."""
    low, high = layout["yaxis"]["range"]
    step = _LINE_PIXELS * (high - low) / (figure.height - 110)
    column = sorted((_on_axis(label.y, layout), place) for place, label in enumerate(figure.labels))
    heights = [height for height, _ in column]
    for _ in range(60):  # push neighbours apart, each by half of what is missing
        for place in range(1, len(heights)):
            missing = step - (heights[place] - heights[place - 1])
            if missing > 0.01 * step:
                heights[place - 1] -= missing / 2
                heights[place] += missing / 2
    placed = zip(heights, column, strict=True)
    return [
        _text(figure.labels[place], xref="paper", x=1, xshift=10, y=height, xanchor="left")
        for height, (_, place) in placed
    ]


def _on_axis(y: float, layout: Json) -> float:
    """A value where annotations are placed, which on a logarithmic axis is its logarithm."""
    return math.log10(y) if layout["yaxis"].get("type") == "log" else y
