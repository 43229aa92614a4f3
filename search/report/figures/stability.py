"""Does a cheap rung order the candidates as a dear one does? One panel for every pair of orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.report.figures import marks
from search.report.figures.figure import Figure, Json, axis, padded, scatter
from search.runs.journeys import Journey, Role, Stop, journeys

_SIZE = "parameters"


@dataclass(frozen=True)
class StabilityPanel:
    """One pair of orders.

    Attributes:
        before, after: the orders compared, such as ``rung 0`` and ``rung 1``.
        tau: Kendall's tau, None where it is undefined.
        candidates: how many both orders hold.
        by_size: the tau that the parameter count alone reaches against ``after``, None if not reported.
        figure: losses at both, None when fewer than two candidates have both.
    """

    before: str
    after: str
    tau: float | None
    candidates: int
    by_size: float | None
    figure: Figure | None


def stability_panels(summary: dict[str, Any]) -> list[StabilityPanel]:
    """A panel for each pair of fidelities; pairs with the parameter count only where there is no other."""
    pairs = summary["rank_correlation"]
    by_size = {pair["to"]: pair["kendall_tau"] for pair in pairs if pair["from"] == _SIZE}
    shown = [pair for pair in pairs if pair["from"] != _SIZE] or pairs
    ways = journeys(summary)
    return [
        StabilityPanel(
            before=pair["from"],
            after=pair["to"],
            tau=pair["kendall_tau"],
            candidates=pair["candidates"],
            by_size=by_size.get(pair["to"]) if pair["from"] != _SIZE else None,
            figure=_figure(f"stability-{number}", pair, ways),
        )
        for number, pair in enumerate(shown)
    ]


def _figure(name: str, pair: dict[str, Any], ways: list[Journey]) -> Figure | None:
    placed: list[tuple[Journey, Stop, float]] = []
    for way in ways:
        before, after = way.at(pair["from"]), way.at(pair["to"])
        if after is not None and pair["from"] == _SIZE:
            placed.append((way, after, float(way.parameters)))
        elif before is not None and after is not None:
            placed.append((way, after, before.loss))
    if len(placed) < 2:
        return None
    return Figure(
        name=name,
        description=f"Loss at {pair['to']} against {pair['from']}, one point a candidate.",
        traces=_traces(placed),
        layout={
            "xaxis": axis(_title(pair["from"]), range=padded((x for _, _, x in placed), 0.1), nticks=5),
            "yaxis": axis(
                _title(pair["to"]), range=padded((stop.loss for _, stop, _ in placed), 0.1), nticks=6
            ),
        },
        height=300,
    )


def _title(order: str) -> str:
    if order == _SIZE:
        return "parameters"
    return f"loss after {order}" if order == "retraining" else f"loss at {order}"


def _traces(placed: list[tuple[Journey, Stop, float]]) -> list[Json]:
    traces = []
    for way, stop, x in placed:
        look = (
            {"size": 7, "color": "@faint 0.75"}
            if way.role == Role.CANDIDATE
            else marks.marker(way, stop.stage)
        )
        traces.append(scatter([(x, stop.loss)], [marks.hover(way, stop, "")], [stop.row], marker=look))
    return traces
