"""Importance by axis: how fast the scores fall off, and where the chosen architecture cuts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from search.report.figures.figure import Figure, Json, axis, lines, plain
from search.report.journeys import chosen_student
from search.report.ranking_view import RankingView

_OF_LAYER = re.compile(r"^(?P<axis>.+) layer (?P<layer>\d+)$")
_NAMES = {
    "mlp": "MLP neurons",
    "heads": "heads",
    "kv_heads": "KV heads",
    "kv_groups": "KV groups",
    "hidden": "hidden dimensions",
    "experts": "experts",
    "expert_mlp": "neurons of experts",
    "shared_mlp": "neurons of shared experts",
    "head_dim": "entries of heads",
}
_MOST_POINTS = 160
_HEIGHT = 300
#: Shares of the highest score below this are drawn on the floor of a logarithmic axis.
_FLOOR = 1e-3


@dataclass(frozen=True)
class ImportancePanel:
    """One axis: its title, how much of it the chosen model keeps (maybe empty), and its figure."""

    title: str
    kept: str
    figure: Figure


def importance_panels(summary: dict[str, Any], ranking: RankingView) -> list[ImportancePanel]:
    """A panel for each axis that has scores, in the order of the ranking."""
    chosen = chosen_student(summary)
    architecture = chosen["architecture"] if chosen else {}
    return [
        _layers(layers[None], architecture.get("kept_layers"))
        if name == "layers" and None in layers
        else _fall(name, layers, architecture.get(name))
        for name, layers in _by_axis(ranking.scores).items()
    ]


def _by_axis(scores: Mapping[str, Sequence[float]]) -> dict[str, dict[int | None, Sequence[float]]]:
    """Scores by axis and layer; an axis that all layers share stands under None."""
    found: dict[str, dict[int | None, Sequence[float]]] = {}
    for key, values in scores.items():
        match = _OF_LAYER.match(key)
        name, layer = (match["axis"], int(match["layer"])) if match else (key, None)
        if len(values):
            found.setdefault(name, {})[layer] = values
    return found


def _fall(name: str, layers: dict[int | None, Sequence[float]], kept: int | None) -> ImportancePanel:
    """Scores in falling order, each layer's divided by its highest."""
    title = _NAMES.get(name, name)
    longest = max(len(values) for values in layers.values())
    shares = {layer: _shares(values) for layer, values in layers.items()}
    steep = median(median(values) for values in shares.values()) < 0.08
    figure = Figure(
        name=f"importance-{re.sub('[^a-z0-9]+', '-', name.lower())}",
        description=f"Scores of {title} from the highest to the lowest.",
        traces=_lines(title, shares),
        layout={
            "xaxis": axis(f"{title}, by rank", range=[0, longest], nticks=6),
            "yaxis": _share_axis(steep),
            "shapes": _cut(kept, longest),
        },
        height=_HEIGHT,
    )
    words = "" if kept is None else f"keeps {kept:,} of {longest:,}"
    return ImportancePanel(title[0].upper() + title[1:], words, figure)


def _shares(values: Sequence[float]) -> list[float]:
    highest = max(values)
    return [max(_FLOOR, float(value) / highest) if highest > 0 else _FLOOR for value in values]


def _share_axis(steep: bool) -> Json:
    """Logarithmic where half of the units score next to nothing beside the highest."""
    if not steep:
        return axis("score, share of the highest", range=[0, 1.05], nticks=5)
    ticks = {"tickvals": [_FLOOR, 0.01, 0.1, 1], "ticktext": [f"{_FLOOR:g} or less", "0.01", "0.1", "1"]}
    return axis("score, share of the highest", type="log", range=[-3.05, 0.1], **ticks)


def _lines(title: str, shares: dict[int | None, list[float]]) -> list[Json]:
    """A line a layer, the deeper the darker; long axes are thinned out to what a screen can show."""
    deepest = max((layer for layer in shares if layer is not None), default=0)
    traces = []
    for layer, values in shares.items():
        shade = 0.9 if layer is None or not deepest else 0.22 + 0.68 * layer / deepest
        text = plain(title if layer is None else f"layer {layer}")
        places = sorted({*range(0, len(values), max(1, len(values) // _MOST_POINTS)), len(values) - 1})
        trace = lines(
            [[(place + 0.5, round(values[place], 5)) for place in places]], f"@ink {shade:.2f}", 1.3
        )
        trace.update(hoverinfo="text", hovertext=[f"{text}, rank {place + 1}" for place in places])
        if len(values) <= 16:
            trace.update(mode="lines+markers", marker={"size": 5, "color": f"@ink {shade:.2f}"})
        traces.append(trace)
    return traces


def _cut(kept: int | None, longest: int) -> list[Json]:
    """A wash over what the chosen architecture drops, and its edge."""
    if kept is None or kept >= longest:
        return []
    box = {"yref": "paper", "x0": kept, "y0": 0, "y1": 1}
    return [
        {
            **box,
            "type": "rect",
            "x1": longest,
            "line": {"width": 0},
            "fillcolor": "@faint 0.14",
            "layer": "below",
        },
        {**box, "type": "line", "x1": kept, "line": {"color": "@accent", "width": 1.5}},
    ]


def _layers(values: Sequence[float], kept: Sequence[int] | None) -> ImportancePanel:
    """Block influence by layer of the teacher; layers that the chosen model drops are pale."""
    keeps = set(range(len(values)) if kept is None else kept)
    bars = {
        "type": "bar",
        "x": list(range(len(values))),
        "y": [float(value) for value in values],
        "hoverinfo": "text",
        "hovertext": [
            f"layer {layer}, {'kept' if layer in keeps else 'dropped'}<br>block influence {value:.3g}"
            for layer, value in enumerate(values)
        ],
        "marker": {
            "color": ["@accent 0.85" if layer in keeps else "@faint 0.3" for layer in range(len(values))]
        },
    }
    figure = Figure(
        name="importance-layers",
        description="Block influence of every layer of the teacher.",
        traces=[bars],
        layout={
            "xaxis": axis("layer of the teacher", dtick=max(1, len(values) // 8), showgrid=False),
            "yaxis": axis("block influence", nticks=5, rangemode="tozero"),
            "bargap": 0.35,
        },
        height=_HEIGHT,
    )
    return ImportancePanel("Layers", "" if kept is None else f"keeps {len(keeps)} of {len(values)}", figure)
