"""Convert a figure of the report to a ``plotly.graph_objects.Figure``, for pages without the report's script.

Colours and fonts are those of the report's light theme; direct labels have fixed places.
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
#: Keys whose values are displayed texts; they may look like a colour and stay as they are.
_TEXTS = ("text", "hovertext", "ticktext", "name")
#: Approximate size of a figure in the dashboard, for which the labels are placed.
_PIXELS_ACROSS, _HEIGHT, _MARGINS = 500, 440, 110
_LINE_PIXELS, _PIXELS_A_LETTER = 15, 7
#: Places of a label around its point, in order of preference: x anchor, and x and y offset in pixels.
_PLACES = (
    *(("left", 10, 0), ("right", -10, 0), ("center", 0, -17), ("center", 0, 17)),
    *(("left", 4, -17), ("right", -4, -17), ("left", 4, 17), ("right", -4, 17)),
    *(("center", 0, -33), ("left", 4, -33), ("right", -4, -33), ("left", 4, 33), ("right", -4, 33)),
    *(("center", 0, -49), ("left", 4, -49), ("right", -4, -49)),
)


def plotly_object(figure: Figure, title: str) -> go.Figure:
    """Return the figure in its first view, with the settings for narrow pages and the light theme.

    Args:
        figure: a figure of the report.
        title: escaped title above the figure.
    """
    drawn = _resolved(figure.data())
    layout: Json = drawn["layout"]
    shown = figure.views[0].settings if figure.views else {}
    for path, value in {**shown, **figure.narrow}.items():
        part, key = path.split(".")
        layout[part][key] = value
    margin = {"l": 56, "r": 20, "b": 50, **layout.get("margin", {}), "t": 56}
    if figure.labels_beside:
        margin["r"] = 40 + 7 * max((len(label.text) for label in figure.labels), default=0)
    place = _place_beside if figure.labels_beside else _place_around
    layout |= {
        "height": _HEIGHT,
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
    """Return the CSS custom properties of the light theme by name."""
    style = files("search.report").joinpath("page", "page.css").read_text(encoding="utf-8")
    theme = style[style.index(":root") : style.index("}")]
    return {name: value.strip() for name, value in re.findall(r"--([a-z]+):([^;]*);", theme)}


def _resolved(value: Any, key: str = "") -> Any:
    """Return the value with every colour or font name replaced by its CSS value."""
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


def _place_around(figure: Figure, layout: Json) -> list[Json]:
    """Place each label near its point, clear of single marks and earlier labels; omit it if none is free."""
    (left, right), (low, high) = layout["xaxis"]["range"], layout["yaxis"]["range"]
    across, down = _PIXELS_ACROSS, _HEIGHT - _MARGINS

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - left) / (right - left) * across, (_on_axis(y, layout) - low) / (high - low) * down

    single = [trace for trace in figure.traces if trace["mode"] == "markers" and len(trace["x"]) == 1]
    marks = [place(trace["x"][0], trace["y"][0]) for trace in single]
    taken = [(x - 7.0, x + 7.0, y - 7.0, y + 7.0) for x, y in marks]
    found = []
    for label in figure.labels:
        x, y = place(label.x, label.y)
        width = _PIXELS_A_LETTER * len(label.text)
        for anchor, right_of, above in _PLACES:
            start = x + right_of - {"left": 0.0, "center": 0.5, "right": 1.0}[anchor] * width
            box = start, start + width, y + above - _LINE_PIXELS / 2, y + above + _LINE_PIXELS / 2
            inside = box[0] >= 0 and box[1] <= across and box[2] >= 0 and box[3] <= down
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                at = {"x": label.x, "y": _on_axis(label.y, layout), "xanchor": anchor}
                found.append(_text(label, **at, xshift=right_of, yshift=above, bgcolor="@paper 0.7"))
                break
    return found


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _place_beside(figure: Figure, layout: Json) -> list[Json]:
    """Place the labels in a column to the right, sorted by height and at least one line apart."""
    low, high = layout["yaxis"]["range"]
    step = _LINE_PIXELS * (high - low) / (_HEIGHT - _MARGINS)
    column = sorted((_on_axis(label.y, layout), place) for place, label in enumerate(figure.labels))
    heights = [height for height, _ in column]
    for _ in range(60):  # push neighbours apart, each by half of the missing distance
        for place in range(1, len(heights)):
            missing = step - (heights[place] - heights[place - 1])
            if missing > 0.01 * step:
                heights[place - 1] -= missing / 2
                heights[place] += missing / 2
        heights = [min(max(height, low + step / 3), high) for height in heights]  # Plotly hides any outside
    placed = zip(heights, column, strict=True)
    return [
        _text(figure.labels[place], xref="paper", x=1, xshift=10, y=height, xanchor="left")
        for height, (_, place) in placed
    ]


def _on_axis(y: float, layout: Json) -> float:
    """Return the coordinate for an annotation: on a logarithmic axis the logarithm of the value."""
    return math.log10(y) if layout["yaxis"].get("type") == "log" else y
