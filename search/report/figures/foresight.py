"""What was foretold and what came: losses after retraining, and the order of the candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.report.figures import figure as marks
from search.report.figures.figure import Figure, Json, Label, axis, lines, padded, plain, scatter
from search.runs.trajectories import RETRAINING, Role, Trajectory, TrajectoryPoint, top_rung, trajectories
from search.terminal import format as words

#: Retrained models all have a row; candidates fill up to so many, the lowest forecasts first.
_ROWS = 16
_ROW_HEIGHT, _AROUND = 25, 66
_COLOURS = {Role.CHOSEN: "@accent", Role.PROMOTED: "@accent", Role.BASELINE: "@soft"}


@dataclass(frozen=True)
class _Row:
    way: Trajectory
    told: dict[str, Any]

    @property
    def colour(self) -> str:
        return _COLOURS.get(self.way.role, "@faint")

    @property
    def last(self) -> str:
        """The row of its last evaluation."""
        return self.way.stops[-1].row

    @property
    def hover(self) -> str:
        came = words.nats(self.told["outcome"])
        return "<br>".join(
            [
                f"<b>{plain(self.way.label)}</b>",
                plain(words.sizes(self.way.architecture)),
                f"forecast: {words.nats(self.told['loss'])} nats/token, "
                f"{words.nats(self.told['low'])} to {words.nats(self.told['high'])}",
                f"after retraining: {came} nats/token"
                if self.told["outcome"] is not None
                else "not retrained",
            ]
        )


def intervals_figure(summary: dict[str, Any]) -> Figure | None:
    """Forecasts of the retrained models and of the best others of the top rung; None when there are none."""
    rows = _rows(summary)
    if not rows:
        return None
    teacher = summary["teacher"]["loss"]
    reach = [value for row in rows for value in (row.told["low"], row.told["high"], row.told["outcome"])]
    across = padded([teacher, *(value for value in reach if value is not None)], 0.04)
    return Figure(
        name="intervals",
        description="Forecast of the loss after retraining with its interval, and the loss that came.",
        traces=_traces(rows),
        layout={
            "xaxis": axis("loss after retraining, nats per token", range=across, nticks=7),
            "yaxis": axis("", range=[len(rows) - 0.4, -0.6], **_names(rows), showgrid=False, ticks=""),
            "shapes": [_upright(teacher)],
            "annotations": [_teacher(teacher)],
            "margin": {"l": 20, "r": 20, "t": 22, "b": 44},
        },
        narrow={"yaxis.ticktext": [label.short for label in _labels(rows)]},
        height=_AROUND + _ROW_HEIGHT * len(rows),
    )


def verdict(summary: dict[str, Any]) -> str:
    """How the forecasts of a run turned out, in a sentence."""
    forecast = summary["forecast"]
    number, held = forecast["outcomes"], forecast["held"]
    if not number:
        return "No candidate was retrained, so nothing is known of how well it holds."
    off = f"was off by {words.nats(forecast['absolute_error'])} nats"
    if number == 1:
        kept = "held" if held else "did not hold"
        return f"The interval {kept} for the one retrained model; the median {off}."
    return f"The interval held for {held} of {number} retrained models; the median {off} on average."


def _rows(summary: dict[str, Any]) -> list[_Row]:
    """By forecast, the lowest first."""
    told = {one["label"]: one for one in summary["forecast"]["candidates"]}
    ways = [way for way in trajectories(summary) if way.label in told and way.origin != "random-weights"]
    retrained = [way for way in ways if told[way.label]["outcome"] is not None]
    stage = f"rung {top_rung(summary)}"
    others = [way for way in ways if way not in retrained and way.at(stage) is not None]
    others.sort(key=lambda way: float(told[way.label]["loss"]))
    shown = [*retrained, *others[: max(0, _ROWS - len(retrained))]]
    return [
        _Row(way, told[way.label]) for way in sorted(shown, key=lambda way: float(told[way.label]["loss"]))
    ]


def _traces(rows: list[_Row]) -> list[Json]:
    traces = []
    for place, row in enumerate(rows):
        ends = [(row.told["low"], place), (row.told["high"], place)]
        tick = {"symbol": "line-ns", "size": 11, "line": {"color": row.colour, "width": 2}}
        traces.append(lines([ends], f"{row.colour} 0.55", 4))
        traces.append(scatter([(row.told["loss"], place)], [row.hover], [row.last], marker=tick))
        if row.told["outcome"] is not None:
            mark = marks.marker(row.way, RETRAINING)
            traces.append(scatter([(row.told["outcome"], place)], [row.hover], [row.last], marker=mark))
    return traces


def _labels(rows: list[_Row]) -> list[Label]:
    return [
        marks.label(row.way, 0, place)
        if row.way.role != Role.CANDIDATE
        else Label(0, place, plain(row.way.label), "")
        for place, row in enumerate(rows)
    ]


def _names(rows: list[_Row]) -> Json:
    return {"tickvals": list(range(len(rows))), "ticktext": [label.text for label in _labels(rows)]}


def _upright(x: float) -> Json:
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


def _teacher(x: float) -> Json:
    return {
        "x": x,
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "text": "<b>teacher</b>",
        "showarrow": False,
        "font": {"size": 12, "color": "@ink"},
    }


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
    ways = trajectories(summary)
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


def _figure(name: str, pair: dict[str, Any], ways: list[Trajectory]) -> Figure | None:
    placed: list[tuple[Trajectory, TrajectoryPoint, float]] = []
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
        traces=_rank_traces(placed),
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


def _rank_traces(placed: list[tuple[Trajectory, TrajectoryPoint, float]]) -> list[Json]:
    traces = []
    for way, stop, x in placed:
        look = (
            {"size": 7, "color": "@faint 0.75"}
            if way.role == Role.CANDIDATE
            else marks.marker(way, stop.stage)
        )
        traces.append(scatter([(x, stop.loss)], [marks.hover(way, stop, "")], [stop.row], marker=look))
    return traces
