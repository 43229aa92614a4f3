"""Figures of importance by axis: how fast the scores decrease, and where the chosen architecture cuts.

A heat map has one row per layer, so that layers can be compared. Energy is the sum of squared scores; its
share says how much of the importance a size keeps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from search.report.figures.figure import Figure, Json, axis, lines, plain
from search.runs.saved_run import RankingView
from search.runs.trajectories import chosen_student
from space.cutting.ranking import Profile

HEIGHT = 300
#: Shares of the highest score below this get the same colour.
_FLOOR = 1e-3


def identifier(kind: str, name: str) -> str:
    """Return the HTML id of a figure within the page."""
    return f"{kind}-{re.sub('[^a-z0-9]+', '-', name.lower())}"


def heat_map(
    name: str, title: str, profile: Profile, kept: int | None, kept_layers: Sequence[int] | None
) -> Figure:
    """Draw scores by layer and rank as shares of the highest; units that the chosen model drops are dimmed.

    Args:
        name: name of the axis, as in architectures.
        title: name of its units for readers.
        profile: scores with one row per layer.
        kept: number of units that the chosen model keeps; None without a chosen model.
        kept_layers: the teacher's layers that it keeps; None without a chosen model.
    """
    highest = max(max(row) for row in profile.scores if row is not None)
    shares = [None if row is None else _shares(row, highest) for row in profile.scores]
    width = len(profile.edges) - 1
    heat = {
        "type": "heatmap",
        "x": list(profile.edges),
        "y": [number - 0.5 for number in range(len(shares) + 1)],
        "z": [[None] * width if row is None else [_exponent(share) for share in row] for row in shares],
        "customdata": [[None] * width if row is None else row for row in shares],
        "zmin": -3,
        "zmax": 0,
        "colorscale": [[0, "@wash"], [1, "@accent"]],
        "colorbar": _colour_bar(),
        "hoverongaps": False,
        "hovertemplate": "layer %{y:.0f}, around rank %{x:.0f}<br>"
        "%{customdata:.2g} of the highest score<extra></extra>",
    }
    return Figure(
        name=identifier("heat", name),
        description=f"Scores of {title} by layer and rank.",
        traces=[heat],
        layout={
            "xaxis": axis(f"{title}, by rank", range=[0, profile.units], nticks=6, showgrid=False),
            "yaxis": axis(
                "layer", range=[len(shares) - 0.5, -0.5], dtick=max(1, len(shares) // 8), showgrid=False
            ),
            "shapes": [*_dimmed_layers(len(shares), kept_layers), *_cut(kept, profile.units)],
        },
        height=HEIGHT,
    )


def energy_curves(name: str, title: str, profile: Profile, kept: int | None) -> Figure:
    """Draw the share of energy in the best units by their number: one line per layer, deeper is darker."""
    rows = {number: row for number, row in enumerate(profile.energy) if row is not None}
    deepest = max(rows)
    traces = []
    for number, row in rows.items():
        shade = 0.22 + 0.68 * number / deepest if deepest else 0.9
        points = list(zip(profile.edges, row, strict=True))
        trace = lines([points], f"@ink {shade:.2f}", 1.3)
        of = f"layer {number}: " if deepest else ""
        trace.update(
            hoverinfo="text",
            hovertext=[plain(f"{of}the best {units:,} hold {share:.1%}") for units, share in points],
        )
        traces.append(trace)
    return Figure(
        name=identifier("energy", name),
        description=f"Share of the energy that the best {title} hold, by their number.",
        traces=traces,
        layout={
            "xaxis": axis(f"{title} kept", range=[0, profile.units], nticks=6),
            "yaxis": axis("share of energy", range=[0, 1.03], nticks=5, tickformat=".0%"),
            "shapes": _shaded(kept, profile.units),
        },
        height=HEIGHT,
    )


def energy_kept(profile: Profile, kept: int) -> float:
    """Return the share of the energy that a size keeps: the mean over rows, interpolated linearly."""
    return sum(_between(profile.edges, row, kept) for row in profile.energy if row is not None) / sum(
        row is not None for row in profile.energy
    )


def _between(edges: Sequence[int], row: Sequence[float], kept: int) -> float:
    above = next(place for place, edge in enumerate(edges) if edge >= kept)
    if edges[above] == kept:
        return row[above]
    step = (kept - edges[above - 1]) / (edges[above] - edges[above - 1])
    return row[above - 1] + step * (row[above] - row[above - 1])


def _shares(row: Sequence[float], highest: float) -> list[float]:
    return [float(f"{score / highest:.3g}") if highest > 0 else 0.0 for score in row]


def _exponent(share: float) -> float:
    return round(math.log10(max(_FLOOR, share)), 2)


def _colour_bar() -> Json:
    return {
        "tickvals": [-3, -2, -1, 0],
        "ticktext": ["≤ 0.001", "0.01", "0.1", "1"],
        "tickfont": {"color": "@soft", "size": 11},
        "thickness": 9,
        "outlinewidth": 0,
        "len": 1,
        "title": {"text": "share of the highest", "side": "right", "font": {"color": "@soft", "size": 11}},
    }


def _cut(kept: int | None, units: int) -> list[Json]:
    """Return a line where the chosen model cuts, and a box that dims what it drops (for heat maps)."""
    if kept is None or kept >= units:
        return []
    box = {"yref": "paper", "x0": kept, "y0": 0, "y1": 1}
    line = {**box, "type": "line", "x1": kept, "line": {"color": "@ink", "width": 1.5}}
    return [{**box, "type": "rect", "x1": units, "line": {"width": 0}, "fillcolor": "@paper 0.55"}, line]


def _dimmed_layers(layers: int, kept: Sequence[int] | None) -> list[Json]:
    dropped = [] if kept is None else sorted(set(range(layers)) - set(kept))
    return [
        {
            "type": "rect",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": layer - 0.5,
            "y1": layer + 0.5,
            "line": {"width": 0},
            "fillcolor": "@paper 0.75",
        }
        for layer in dropped
    ]


def _shaded(kept: int | None, units: int) -> list[Json]:
    """Return a line where the chosen model cuts, and a shade over what it drops (for curves)."""
    if kept is None or kept >= units:
        return []
    box = {"yref": "paper", "x0": kept, "y0": 0, "y1": 1}
    wash = {"x1": units, "line": {"width": 0}, "fillcolor": "@faint 0.14", "layer": "below"}
    edge = {"x1": kept, "line": {"color": "@accent", "width": 1.5}}
    return [{**box, "type": "rect", **wash}, {**box, "type": "line", **edge}]


_NAMES = {
    "mlp": "MLP neurons",
    "heads": "heads",
    "kv_heads": "KV heads",
    "hidden": "hidden dimensions",
    "experts": "experts",
    "expert_mlp": "neurons of experts",
    "shared_mlp": "neurons of shared experts",
    "head_dim": "entries of heads",
}
_TURNED = "directions of the stream"


@dataclass(frozen=True)
class ImportancePanel:
    """A figure of one axis with its title; ``kept`` says what the chosen model keeps, or is empty."""

    title: str
    kept: str
    figure: Figure


def importance_panels(summary: dict[str, Any], ranking: RankingView) -> list[ImportancePanel]:
    """Return the panels of every axis that has scores, in the order of the ranking."""
    chosen = chosen_student(summary)
    architecture = chosen["architecture"] if chosen else {}
    kept_layers = architecture.get("kept_layers")
    panels = [
        panel
        for name, profile in ranking.profiles.items()
        for panel in _panels(
            name,
            _TURNED if name == "hidden" and ranking.turned else _NAMES.get(name, name),
            profile,
            architecture.get(name),
            kept_layers,
        )
    ]
    return [*panels, _layers(ranking.layers, kept_layers)] if ranking.layers else panels


def _panels(
    name: str, title: str, profile: Profile, kept: int | None, kept_layers: Sequence[int] | None
) -> Iterator[ImportancePanel]:
    """Yield a heat map if there are several layers to compare, then the energy kept against size."""
    capital = title[0].upper() + title[1:]
    if len(profile.scores) > 1:
        note = "" if kept is None else f"keeps {kept:,} of {profile.units:,}"
        yield ImportancePanel(capital, note, heat_map(name, title, profile, kept, kept_layers))
    note = "" if kept is None else f"{kept:,} of {profile.units:,} keep {energy_kept(profile, kept):.1%}"
    yield ImportancePanel(f"{capital}: energy", note, energy_curves(name, title, profile, kept))


def _layers(values: Sequence[float], kept: Sequence[int] | None) -> ImportancePanel:
    """Draw the score of every layer of the teacher; layers that the chosen model drops are pale."""
    keeps = set(range(len(values)) if kept is None else kept)
    bars = {
        "type": "bar",
        "x": list(range(len(values))),
        "y": [float(value) for value in values],
        "hoverinfo": "text",
        "hovertext": [
            f"layer {layer}, {'kept' if layer in keeps else 'dropped'}<br>score {value:.3g}"
            for layer, value in enumerate(values)
        ],
        "marker": {
            "color": ["@accent 0.85" if layer in keeps else "@faint 0.3" for layer in range(len(values))]
        },
    }
    figure = Figure(
        name="importance-layers",
        description="The score of every layer of the teacher.",
        traces=[bars],
        layout={
            "xaxis": axis("layer of the teacher", dtick=max(1, len(values) // 8), showgrid=False),
            "yaxis": axis("score", nticks=5, rangemode="tozero"),
            "bargap": 0.35,
        },
        height=HEIGHT,
    )
    return ImportancePanel("Layers", "" if kept is None else f"keeps {len(keeps)} of {len(values)}", figure)
