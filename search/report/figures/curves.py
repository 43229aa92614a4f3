"""Loss against tokens: every candidate over the rungs, and the curves of retraining."""

from __future__ import annotations

import math
import re
from typing import Any

from search.report.figures import figure as marks
from search.report.figures.figure import (
    Figure,
    Json,
    Label,
    axis,
    level,
    lines,
    padded,
    round_ticks,
    scatter,
)
from search.runs.trajectories import RETRAINING, Role, Trajectory, trajectories
from search.terminal import format as words

#: What a round number of tokens needs no digits for.
_NOUGHTS = re.compile(r"\.0+(?!\d)")


def curves_figure(summary: dict[str, Any]) -> Figure | None:
    """Loss by rung and by tokens of retraining; None when nothing was evaluated."""
    ways = trajectories(summary)
    if not ways:
        return None
    scale = _token_scale(summary)
    tokens, narrow = _token_axis(summary, scale)
    losses = [loss for way in ways for _, loss in (*_rungs(way), *_curve(way))] + [summary["teacher"]["loss"]]
    return Figure(
        name="curves",
        description="Loss of every candidate over the tokens of distillation, rungs and retraining.",
        traces=[*_rung_lines(ways, scale), *_retraining_lines(ways, scale), *_marks(ways, scale)],
        layout={
            "xaxis": tokens,
            "yaxis": _loss_axis(losses),
            "shapes": [level(summary["teacher"]["loss"])],
            "margin": {"l": 56, "r": 20, "t": 14, "b": 58},
        },
        labels=_labels(summary, ways),
        labels_beside=True,
        narrow=narrow,
        height=460,
    )


def _rungs(way: Trajectory) -> list[tuple[int, float]]:
    return [(stop.tokens, stop.loss) for stop in way.stops if stop.stage != RETRAINING]


def _curve(way: Trajectory) -> list[tuple[int, float]]:
    """The learning curve of retraining, from the loss straight after pruning if that was measured."""
    if way.student is None or not way.student["curve"]:
        return []
    curve = [(tokens, loss) for tokens, loss in way.student["curve"]]
    start = way.student["loss_after_pruning"]
    return [(0, start), *curve] if start is not None and curve[0][0] > 0 else curve


def _token_scale(summary: dict[str, Any]) -> float:
    """Tokens below which the axis is linear: half of the first distilled rung, so that nought has a place."""
    spent = [rung["tokens"] for rung in summary["rungs"]]
    spent += [tokens for entry in _students(summary) for tokens, _ in entry["curve"]]
    return min((tokens for tokens in spent if tokens > 0), default=2) / 2


def _students(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [*summary["promoted"], *summary["baselines"]]


def _place(points: list[tuple[int, float]], scale: float) -> list[tuple[float, float]]:
    """Token counts on an axis that is linear near nought and logarithmic far from it."""
    return [(math.asinh(tokens / scale), loss) for tokens, loss in points]


def _rung_lines(ways: list[Trajectory], scale: float) -> list[Json]:
    def paths(*roles: Role) -> list[list[tuple[float, float]]]:
        return [_place(_rungs(way), scale) for way in ways if way.role in roles]

    crowd = lines(paths(Role.CANDIDATE), "@faint 0.5")
    baselines = [
        lines([_place(_rungs(way), scale)], "@soft 0.8", 1.2, line={"dash": marks.dash(way.origin)})
        for way in ways
        if way.role == Role.BASELINE
    ]
    return [crowd, *baselines, lines(paths(Role.PROMOTED, Role.CHOSEN), "@accent 0.55", 1.4)]


def _retraining_lines(ways: list[Trajectory], scale: float) -> list[Json]:
    found = []
    for way in ways:
        accent = way.role in (Role.CHOSEN, Role.PROMOTED)
        colour = "@accent" if accent else "@soft"
        width = 2.6 if way.role == Role.CHOSEN else 1.5
        found.append(
            lines([_place(_curve(way), scale)], colour, width, line={"dash": marks.dash(way.origin)})
        )
    return found


def _marks(ways: list[Trajectory], scale: float) -> list[Json]:
    """A marker with a hover text at every evaluation."""
    crowd: list[tuple[tuple[float, float], str, str]] = []
    traces = []
    for way in ways:
        for stop in way.stops:
            [point] = _place([(stop.tokens, stop.loss)], scale)
            text = marks.hover(way, stop, f"{words.count(stop.tokens)} tokens")
            if way.role == Role.CANDIDATE:
                crowd.append((point, text, stop.row))
            else:
                traces.append(scatter([point], [text], [stop.row], marker=marks.marker(way, stop.stage)))
    points, texts = [point for point, _, _ in crowd], [text for _, text, _ in crowd]
    rows = [row for _, _, row in crowd]
    return [scatter(points, texts, rows, marker={"size": 4.5, "color": "@faint 0.7"}), *traces]


def _token_axis(summary: dict[str, Any], scale: float) -> tuple[Json, Json]:
    """The axis with ticks at the rungs, at the end, and at round numbers between; and its ticks if narrow."""
    rungs = {rung["tokens"]: f"rung {rung['rung']}" for rung in summary["rungs"]}
    last = max([*rungs, *(tokens for entry in _students(summary) for tokens, _ in entry["curve"])], default=1)
    start = max([*rungs, 1])
    between = round_ticks(1.6 * start, 0.6 * last, most=4) if 0.6 * last > 1.6 * start else []
    right = math.asinh(last / scale)
    wide = _ticks(_apart({*rungs, last}, between, scale), rungs, scale)
    narrow = _ticks({min(rungs, default=0), start, last}, rungs, scale)
    found = axis("tokens of distillation", **wide, tickangle=0, range=[-0.03 * right, 1.03 * right])
    return found, {f"xaxis.{key}": value for key, value in narrow.items()}


def _apart(fixed: set[int], between: list[float], scale: float) -> set[int]:
    """The fixed ticks and those of the others that leave room for their texts."""
    found = set(fixed)
    room = 0.08 * math.asinh(max(fixed) / scale)
    for tick in between:
        place = math.asinh(tick / scale)
        if all(abs(place - math.asinh(other / scale)) > room for other in found):
            found.add(round(tick))
    return found


def _ticks(tokens: set[int], rungs: dict[int, str], scale: float) -> Json:
    texts = [_NOUGHTS.sub("", words.count(tick)) if tick else "pruned" for tick in sorted(tokens)]
    named = [rungs.get(tick, "") for tick in sorted(tokens)]
    return {
        "tickvals": [math.asinh(tick / scale) for tick in sorted(tokens)],
        "ticktext": [f"{text}<br>{rung}" if rung else text for text, rung in zip(texts, named, strict=True)],
    }


def _loss_axis(losses: list[float]) -> Json:
    """A logarithmic axis when the losses span much, since the late differences are the ones that matter."""
    low, high = min(losses), max(losses)
    if low <= 0 or high < 1.5 * low:
        return axis("loss, nats per token", range=padded(losses))
    ticks = round_ticks(0.97 * low, 1.03 * high)
    return axis(
        "loss, nats per token",
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        range=padded([math.log10(low), math.log10(high)], 0.05),
    )


def _labels(summary: dict[str, Any], ways: list[Trajectory]) -> list[Label]:
    """The teacher, and the last loss of every model that is no mere candidate."""
    ends = [marks.label(way, 0, way.stops[-1].loss) for way in ways if way.role != Role.CANDIDATE]
    return [Label(0, summary["teacher"]["loss"], "teacher", "teacher", "@ink", True), *ends]
