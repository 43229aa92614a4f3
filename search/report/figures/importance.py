"""Importance by axis: how fast the scores fall off, and where the chosen architecture cuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from search.report.figures.falling import HEIGHT, energy_curves, energy_kept, heat_map
from search.report.figures.figure import Figure, axis
from search.runs.journeys import chosen_student
from search.runs.ranking_view import RankingView
from space.cutting.profile import Profile

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
    """One figure of an axis: its title, what the chosen model keeps (maybe empty), and the figure."""

    title: str
    kept: str
    figure: Figure


def importance_panels(summary: dict[str, Any], ranking: RankingView) -> list[ImportancePanel]:
    """The panels of each axis that has scores, in the order of the ranking."""
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
    """A heat map where there are layers to compare, and the energy kept against size."""
    capital = title[0].upper() + title[1:]
    if len(profile.scores) > 1:
        words = "" if kept is None else f"keeps {kept:,} of {profile.units:,}"
        yield ImportancePanel(capital, words, heat_map(name, title, profile, kept, kept_layers))
    words = "" if kept is None else f"{kept:,} of {profile.units:,} keep {energy_kept(profile, kept):.1%}"
    yield ImportancePanel(f"{capital}: energy", words, energy_curves(name, title, profile, kept))


def _layers(values: Sequence[float], kept: Sequence[int] | None) -> ImportancePanel:
    """The score of every layer of the teacher; layers that the chosen model drops are pale."""
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
