"""How each kind of model looks in every figure: one accent for what to take, symbols for baselines."""

from __future__ import annotations

from search.report.figures.figure import Json, Label, plain
from search.runs.journeys import RETRAINING, Journey, Role, Stop
from search.terminal import format as words

_SYMBOLS = {
    "uniform": "square",
    "mlp-heads": "diamond",
    "depth": "triangle-down",
    "random-weights": "x-thin",
}
_DASHES = {"uniform": "dash", "mlp-heads": "dashdot", "depth": "dot", "random-weights": "longdash"}


def name(journey: Journey) -> str:
    """How a model is called beside its mark: a baseline by its idea, others by their label."""
    if journey.origin not in _SYMBOLS:
        return journey.label
    idea = words.origin(journey.origin)
    return idea if journey.role == Role.BASELINE else f"{journey.label} ({idea})"


def label(journey: Journey, x: float, y: float) -> Label:
    """The direct label of a model that is no mere candidate."""
    text, chosen = plain(name(journey)), journey.role == Role.CHOSEN
    if journey.role == Role.BASELINE:
        return Label(x, y, text, text, "@soft")
    return Label(x, y, f"chosen: {text}" if chosen else text, journey.role.value, "@accent", chosen)


def dash(origin: str) -> str:
    """The line style of a baseline, solid for anything else."""
    return _DASHES.get(origin, "solid")


def marker(journey: Journey, stage: str) -> Json:
    """The marker of a model at a stage: filled and large after retraining, small before."""
    final = stage == RETRAINING
    if journey.role == Role.CHOSEN:
        ring = {"color": "@accent 0.3", "width": 7} if final else {"color": "@accent", "width": 1.5}
        return {
            "symbol": "circle",
            "color": "@accent" if final else "@paper",
            "size": 13 if final else 7,
            "line": ring,
        }
    if journey.role == Role.PROMOTED:
        line = {"color": "@accent", "width": 1.5}
        return {
            "symbol": "circle",
            "color": "@accent" if final else "@paper",
            "size": 10 if final else 7,
            "line": line,
        }
    symbol = _SYMBOLS.get(journey.origin, "circle")
    line = {"color": "@soft", "width": 2 if final else 1.2}
    return {"symbol": symbol, "color": "@paper", "size": 10 if final else 7, "line": line}


def hover(journey: Journey, stop: Stop, cost: str) -> str:
    """Hover text of one evaluation: name, architecture, loss, and ``cost``, the second axis in words."""
    rows = [
        f"<b>{plain(journey.label)}</b>",
        plain(words.sizes(journey.architecture)),
        f"layers kept: {plain(words.layer_ranges(journey.architecture['kept_layers']))}",
        f"{words.count(journey.parameters)} parameters",
        f"{plain(stop.stage)}: loss {words.nats(stop.loss)} nats/token"
        + (f", {plain(cost)}" if cost else ""),
        f"proposed by: {plain(words.origin(journey.origin))}",
    ]
    return "<br>".join(rows)
