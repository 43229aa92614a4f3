"""The figure of loss against tokens: every candidate over the rungs, and the retraining curves."""

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

#: Decimals that are all zero, which a tick label omits.
_ZERO_DECIMALS = re.compile(r"\.0+(?!\d)")


def curves_figure(summary: dict[str, Any]) -> Figure | None:
    """Return the figure, or None if nothing was evaluated."""
    paths = trajectories(summary)
    if not paths:
        return None
    scale = _token_scale(summary)
    tokens, narrow = _token_axis(summary, scale)
    losses = [loss for path in paths for _, loss in (*_rungs(path), *_curve(path))]
    losses.append(summary["teacher"]["loss"])
    return Figure(
        name="curves",
        description="Loss of every candidate over the tokens of distillation, rungs and retraining.",
        traces=[*_rung_lines(paths, scale), *_retraining_lines(paths, scale), *_marks(paths, scale)],
        layout={
            "xaxis": tokens,
            "yaxis": _loss_axis(losses),
            "shapes": [level(summary["teacher"]["loss"])],
            "margin": {"l": 56, "r": 20, "t": 14, "b": 58},
        },
        labels=_labels(summary, paths),
        labels_beside=True,
        narrow=narrow,
        height=460,
    )


def _rungs(path: Trajectory) -> list[tuple[int, float]]:
    return [(point.tokens, point.loss) for point in path.points if point.stage != RETRAINING]


def _curve(path: Trajectory) -> list[tuple[int, float]]:
    """Return the retraining curve as (tokens, loss), from the loss straight after pruning if measured."""
    if path.student is None or not path.student["curve"]:
        return []
    curve = [(tokens, loss) for tokens, loss in path.student["curve"]]
    start = path.student["loss_after_pruning"]
    return [(0, start), *curve] if start is not None and curve[0][0] > 0 else curve


def _token_scale(summary: dict[str, Any]) -> float:
    """Return half of the fewest tokens spent; the axis is linear below, so that it can show zero."""
    spent = [rung["tokens"] for rung in summary["rungs"]]
    spent += [tokens for entry in _students(summary) for tokens, _ in entry["curve"]]
    return min((tokens for tokens in spent if tokens > 0), default=2) / 2


def _students(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [*summary["promoted"], *summary["baselines"]]


def _place(points: list[tuple[int, float]], scale: float) -> list[tuple[float, float]]:
    """Map token counts to an asinh axis: linear near zero and logarithmic far from it."""
    return [(math.asinh(tokens / scale), loss) for tokens, loss in points]


def _rung_lines(paths: list[Trajectory], scale: float) -> list[Json]:
    def of_roles(*roles: Role) -> list[list[tuple[float, float]]]:
        return [_place(_rungs(path), scale) for path in paths if path.role in roles]

    crowd = lines(of_roles(Role.CANDIDATE), "@faint 0.5")
    baselines = [
        lines([_place(_rungs(path), scale)], "@soft 0.8", 1.2, line={"dash": marks.dash(path.origin)})
        for path in paths
        if path.role == Role.BASELINE
    ]
    return [crowd, *baselines, lines(of_roles(Role.PROMOTED, Role.CHOSEN), "@accent 0.55", 1.4)]


def _retraining_lines(paths: list[Trajectory], scale: float) -> list[Json]:
    found = []
    for path in paths:
        accent = path.role in (Role.CHOSEN, Role.PROMOTED)
        colour = "@accent" if accent else "@soft"
        width = 2.6 if path.role == Role.CHOSEN else 1.5
        line = {"dash": marks.dash(path.origin)}
        found.append(lines([_place(_curve(path), scale)], colour, width, line=line))
    return found


def _marks(paths: list[Trajectory], scale: float) -> list[Json]:
    """Return a marker with a hover text for every evaluation."""
    crowd: list[tuple[tuple[float, float], str, str]] = []
    traces = []
    for path in paths:
        for point in path.points:
            [at] = _place([(point.tokens, point.loss)], scale)
            text = marks.hover(path, point, f"{words.count(point.tokens)} tokens")
            if path.role == Role.CANDIDATE:
                crowd.append((at, text, point.row))
            else:
                traces.append(scatter([at], [text], [point.row], marker=marks.marker(path, point.stage)))
    points, texts = [at for at, _, _ in crowd], [text for _, text, _ in crowd]
    rows = [row for _, _, row in crowd]
    return [scatter(points, texts, rows, marker={"size": 4.5, "color": "@faint 0.7"}), *traces]


def _token_axis(summary: dict[str, Any], scale: float) -> tuple[Json, Json]:
    """Return the axis with ticks at rungs, end and round numbers, and its fewer ticks on narrow pages."""
    rungs = {rung["tokens"]: f"rung {rung['rung']}" for rung in summary["rungs"]}
    last = max([*rungs, *(tokens for entry in _students(summary) for tokens, _ in entry["curve"])], default=1)
    start = max([*rungs, 1])
    between = round_ticks(1.6 * start, 0.6 * last, most=4) if 0.6 * last > 1.6 * start else []
    right = math.asinh(last / scale)
    wide = _ticks(_spaced({*rungs, last}, between, scale), rungs, scale)
    narrow = _ticks({min(rungs, default=0), start, last}, rungs, scale)
    found = axis("tokens of distillation", **wide, tickangle=0, range=[-0.03 * right, 1.03 * right])
    return found, {f"xaxis.{key}": value for key, value in narrow.items()}


def _spaced(fixed: set[int], between: list[float], scale: float) -> set[int]:
    """Return the fixed ticks and those of ``between`` whose labels do not overlap them."""
    found = set(fixed)
    room = 0.08 * math.asinh(max(fixed) / scale)
    for tick in between:
        place = math.asinh(tick / scale)
        if all(abs(place - math.asinh(other / scale)) > room for other in found):
            found.add(round(tick))
    return found


def _ticks(tokens: set[int], rungs: dict[int, str], scale: float) -> Json:
    texts = [_ZERO_DECIMALS.sub("", words.count(tick)) if tick else "pruned" for tick in sorted(tokens)]
    named = [rungs.get(tick, "") for tick in sorted(tokens)]
    return {
        "tickvals": [math.asinh(tick / scale) for tick in sorted(tokens)],
        "ticktext": [f"{text}<br>{rung}" if rung else text for text, rung in zip(texts, named, strict=True)],
    }


def _loss_axis(losses: list[float]) -> Json:
    """Return the loss axis, logarithmic for a wide range because the late small differences matter most."""
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


def _labels(summary: dict[str, Any], paths: list[Trajectory]) -> list[Label]:
    """Return labels for the teacher and for every model that has a role beyond candidate."""
    ends = [marks.label(path, 0, path.points[-1].loss) for path in paths if path.role != Role.CANDIDATE]
    return [Label(0, summary["teacher"]["loss"], "teacher", "teacher", "@ink", True), *ends]
