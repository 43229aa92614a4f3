"""Figures of how well rungs predict: forecasts of the loss after retraining, and rank stability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.report.figures import figure as marks
from search.report.figures.figure import Figure, Json, Label, axis, lines, padded, plain, scatter, upright
from search.runs.trajectories import RETRAINING, Role, Trajectory, TrajectoryPoint, top_rung, trajectories
from search.terminal import format as words

#: All retrained models have a row; the candidates with the lowest forecasts fill up to this many.
_ROWS = 16
_ROW_HEIGHT, _AROUND = 25, 66
_COLOURS = {Role.CHOSEN: "@accent", Role.PROMOTED: "@accent", Role.BASELINE: "@soft"}


@dataclass(frozen=True)
class _Row:
    """A candidate with its forecast, an entry of the summary."""

    trajectory: Trajectory
    forecast: dict[str, Any]

    @property
    def colour(self) -> str:
        return _COLOURS.get(self.trajectory.role, "@faint")

    @property
    def last(self) -> str:
        """The HTML id of the table row of its last evaluation."""
        return self.trajectory.points[-1].row

    @property
    def hover(self) -> str:
        outcome = words.nats(self.forecast["outcome"])
        return "<br>".join(
            [
                f"<b>{plain(self.trajectory.label)}</b>",
                plain(words.sizes(self.trajectory.architecture)),
                f"forecast: {words.nats(self.forecast['loss'])} nats/token, "
                f"{words.nats(self.forecast['low'])} to {words.nats(self.forecast['high'])}",
                f"after retraining: {outcome} nats/token"
                if self.forecast["outcome"] is not None
                else "not retrained",
            ]
        )


def intervals_figure(summary: dict[str, Any]) -> Figure | None:
    """Draw the forecasts of the retrained models and of the best others at the top rung; None without any."""
    rows = _rows(summary)
    if not rows:
        return None
    teacher = summary["teacher"]["loss"]
    reach = [row.forecast[key] for row in rows for key in ("low", "high", "outcome")]
    across = padded([teacher, *(value for value in reach if value is not None)], 0.04)
    return Figure(
        name="intervals",
        description="Forecast of the loss after retraining with its interval, and the loss that came.",
        traces=_traces(rows),
        layout={
            "xaxis": axis("loss after retraining, nats per token", range=across, nticks=7),
            "yaxis": axis("", range=[len(rows) - 0.4, -0.6], **_names(rows), showgrid=False, ticks=""),
            "shapes": [upright(teacher)],
            "annotations": [_teacher_label(teacher)],
            "margin": {"l": 20, "r": 20, "t": 22, "b": 44},
        },
        narrow={"yaxis.ticktext": [label.short for label in _labels(rows)]},
        height=_AROUND + _ROW_HEIGHT * len(rows),
    )


def verdict(summary: dict[str, Any]) -> str:
    """Say in a sentence how accurate the forecasts were."""
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
    """Return the rows to draw, lowest forecast first."""
    forecasts = {one["label"]: one for one in summary["forecast"]["candidates"]}
    paths = [
        one for one in trajectories(summary) if one.label in forecasts and one.origin != "random-weights"
    ]
    retrained = [path for path in paths if forecasts[path.label]["outcome"] is not None]
    stage = f"rung {top_rung(summary)}"
    others = [path for path in paths if path not in retrained and path.at(stage) is not None]
    others.sort(key=lambda path: float(forecasts[path.label]["loss"]))
    shown = [*retrained, *others[: max(0, _ROWS - len(retrained))]]
    rows = [_Row(path, forecasts[path.label]) for path in shown]
    return sorted(rows, key=lambda row: float(row.forecast["loss"]))


def _traces(rows: list[_Row]) -> list[Json]:
    traces = []
    for place, row in enumerate(rows):
        ends = [(row.forecast["low"], place), (row.forecast["high"], place)]
        tick = {"symbol": "line-ns", "size": 11, "line": {"color": row.colour, "width": 2}}
        traces.append(lines([ends], f"{row.colour} 0.55", 4))
        traces.append(scatter([(row.forecast["loss"], place)], [row.hover], [row.last], marker=tick))
        if row.forecast["outcome"] is not None:
            mark = marks.marker(row.trajectory, RETRAINING)
            traces.append(scatter([(row.forecast["outcome"], place)], [row.hover], [row.last], marker=mark))
    return traces


def _labels(rows: list[_Row]) -> list[Label]:
    return [
        marks.label(row.trajectory, 0, place)
        if row.trajectory.role != Role.CANDIDATE
        else Label(0, place, plain(row.trajectory.label), "")
        for place, row in enumerate(rows)
    ]


def _names(rows: list[_Row]) -> Json:
    return {"tickvals": list(range(len(rows))), "ticktext": [label.text for label in _labels(rows)]}


def _teacher_label(x: float) -> Json:
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
    """The rank correlation of one pair of stages.

    Attributes:
        before, after: the stages compared, such as ``rung 0`` and ``rung 1``.
        tau: Kendall's tau; None if undefined.
        candidates: number of candidates that both stages evaluated.
        by_size: Kendall's tau of the parameter count with ``after``; None if not reported.
        figure: losses at both stages; None if fewer than two candidates have both.
    """

    before: str
    after: str
    tau: float | None
    candidates: int
    by_size: float | None
    figure: Figure | None


def stability_panels(summary: dict[str, Any]) -> list[StabilityPanel]:
    """Return a panel for each pair of stages; pairs with the parameter count only if there are no others."""
    pairs = summary["rank_correlation"]
    by_size = {pair["to"]: pair["kendall_tau"] for pair in pairs if pair["from"] == _SIZE}
    shown = [pair for pair in pairs if pair["from"] != _SIZE] or pairs
    paths = trajectories(summary)
    return [
        StabilityPanel(
            before=pair["from"],
            after=pair["to"],
            tau=pair["kendall_tau"],
            candidates=pair["candidates"],
            by_size=by_size.get(pair["to"]) if pair["from"] != _SIZE else None,
            figure=_stability_figure(f"stability-{number}", pair, paths),
        )
        for number, pair in enumerate(shown)
    ]


def _stability_figure(name: str, pair: dict[str, Any], paths: list[Trajectory]) -> Figure | None:
    placed: list[tuple[Trajectory, TrajectoryPoint, float]] = []
    for path in paths:
        before, after = path.at(pair["from"]), path.at(pair["to"])
        if after is not None and pair["from"] == _SIZE:
            placed.append((path, after, float(path.parameters)))
        elif before is not None and after is not None:
            placed.append((path, after, before.loss))
    if len(placed) < 2:
        return None
    return Figure(
        name=name,
        description=f"Loss at {pair['to']} against {pair['from']}, one point a candidate.",
        traces=_rank_traces(placed),
        layout={
            "xaxis": axis(_title(pair["from"]), range=padded((x for _, _, x in placed), 0.1), nticks=5),
            "yaxis": axis(
                _title(pair["to"]), range=padded((point.loss for _, point, _ in placed), 0.1), nticks=6
            ),
        },
        height=300,
    )


def _title(stage: str) -> str:
    if stage == _SIZE:
        return "parameters"
    return f"loss after {stage}" if stage == "retraining" else f"loss at {stage}"


def _rank_traces(placed: list[tuple[Trajectory, TrajectoryPoint, float]]) -> list[Json]:
    traces = []
    for path, point, x in placed:
        plain_mark = {"size": 7, "color": "@faint 0.75"}
        mark = plain_mark if path.role == Role.CANDIDATE else marks.marker(path, point.stage)
        traces.append(scatter([(x, point.loss)], [marks.hover(path, point, "")], [point.row], marker=mark))
    return traces
