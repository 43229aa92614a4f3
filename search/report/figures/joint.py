"""The figure for ``search.compare``: retrained models of several runs, one colour per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from search.report.figures.figure import Figure, Json, Label, axis, lines, padded, plain, scatter
from search.report.figures.front import undominated
from search.runs.summary import CostAxis, cost_axis
from search.runs.trajectories import chosen_student, retrained_entries
from search.terminal import format as words

#: Colour names in the style sheet; further runs reuse the colours with another marker.
COLOURS = ("runa", "runb", "runc", "rund", "rune", "runf", "rung", "runh")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up")
Entry = dict[str, Any]
Point = tuple[float, float, Entry]


@dataclass(frozen=True)
class NamedSummary:
    """A run's summary with the name under which the figure shows it."""

    name: str
    summary: Entry


def joint_figure(runs: Sequence[NamedSummary], quality: str, latencies_compare: bool) -> Figure | None:
    """Draw the front of each run's retrained models and that of all runs together; None without any model.

    Args:
        runs: the runs to compare.
        quality: ``loss``, or ``bits_per_byte`` if the losses are not comparable.
        latencies_compare: whether latencies are comparable; if not, the cost is the parameter count.
    """
    cost = _cost(runs, latencies_compare)
    points = [_points(run.summary, quality, cost) for run in runs]
    if not any(points):
        return None
    traces: list[Json] = []
    labels = []
    for place, (run, found) in enumerate(zip(runs, points, strict=True)):
        colour = f"@{COLOURS[place % len(COLOURS)]}"
        traces += _traces(run, found, cost, colour, _SYMBOLS[place // len(COLOURS) % len(_SYMBOLS)])
        labels += _labels(run, found, colour)
    every = [(x, y) for found in points for x, y, _ in found]
    together = lines([undominated(every)], "@ink 0.55", 1.2, line={"shape": "hv", "dash": "dot"})
    unit = "nats per token" if quality == "loss" else "bits per byte"
    return Figure(
        name="joint",
        description=f"{unit} against {cost.name} of the retrained models of all runs.",
        traces=[{**together, "showlegend": False}, *traces],
        layout={
            "xaxis": axis(f"{cost.title}  (less is better)", range=padded([x for x, _ in every], 0.12)),
            "yaxis": axis(f"loss, {unit}" if quality == "loss" else unit, nticks=8),
            "showlegend": True,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12.5}},
            "margin": {"l": 56, "r": 20, "t": 44, "b": 50},
        },
        labels=labels,
        height=500,
    )


def _cost(runs: Sequence[NamedSummary], latencies_compare: bool) -> CostAxis:
    """Return the cost axis of the first run if all runs share it, else the parameter count."""
    first = cost_axis(runs[0].summary)
    alike = {(cost.name, cost.unit) for cost in (cost_axis(run.summary) for run in runs)}
    if len(alike) > 1 or ("latency" in first.name and not latencies_compare):
        return CostAxis("parameters", "")
    return first


def _points(summary: Entry, quality: str, cost: CostAxis) -> list[Point]:
    entries = [entry for _, entry in retrained_entries(summary) if entry["origin"] != "random-weights"]
    known = [(cost.of(entry), entry[quality], entry) for entry in entries]
    return [(x, float(y), entry) for x, y, entry in known if x is not None and y is not None]


def _traces(run: NamedSummary, found: list[Point], cost: CostAxis, colour: str, symbol: str) -> list[Json]:
    """Return a run's front as a staircase and its models as markers: hand-made hollow, chosen large."""
    chosen = chosen_student(run.summary)
    front, own = undominated([(x, y) for x, y, _ in found]), {"legendgroup": run.name}
    stairs = lines([front], colour, 1.6, line={"shape": "hv"}, name=plain(run.name), **own)
    traces = [{**stairs, "showlegend": True}]
    for size, points in (
        (9, [point for point in found if point[2] is not chosen]),
        (14, [point for point in found if point[2] is chosen]),
    ):
        filled = [colour if entry["origin"] in ("search", "by-hand") else "@paper" for _, _, entry in points]
        mark = {"symbol": symbol, "color": filled, "size": size, "line": {"color": colour, "width": 1.6}}
        texts = [_hover(run, entry, cost) for _, _, entry in points]
        traces.append(
            scatter([(x, y) for x, y, _ in points], texts, [], marker=mark, showlegend=False, **own)
        )
    return traces


def _hover(run: NamedSummary, entry: Entry, cost: CostAxis) -> str:
    rows = [
        f"<b>{plain(entry['label'])}</b>",
        f"run {plain(run.name)}, proposed by: {plain(words.origin(entry['origin']))}",
        plain(words.sizes(entry["architecture"])),
        f"{words.count(entry['parameters'])} parameters",
        f"loss {words.nats(entry['loss'])} nats/token, {words.nats(entry['bits_per_byte'])} bits/byte",
    ]
    value = cost.of(entry)
    if cost.name != "parameters" and value is not None:
        rows.append(f"{plain(cost.name)} {cost.in_words(value)}")
    return "<br>".join(rows)


def _labels(run: NamedSummary, found: list[Point], colour: str) -> list[Label]:
    chosen = chosen_student(run.summary)
    return [
        Label(x, y, plain(entry["label"]), plain(run.name), colour, True)
        for x, y, entry in found
        if entry is chosen
    ]
