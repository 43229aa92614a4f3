"""The figures of the range tests: for each basis, loss after a short training against its peak rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from search.report.figures.figure import Figure, Json, Label, axis, level, lines, padded, plain, scatter
from search.terminal import format as words


@dataclass(frozen=True)
class RatePanel:
    """The range test in one basis."""

    title: str
    found: str
    """What it found, in words."""
    figure: Figure


def rate_panels(summary: dict[str, Any]) -> list[RatePanel]:
    """Return a panel for each range test of the run; none if the rate was not found by one."""
    return [_panel(number, test) for number, test in enumerate(summary["rates"]["tests"])]


def _panel(number: int, test: dict[str, Any]) -> RatePanel:
    title = f"{test['basis']} basis"
    figure = Figure(
        name=f"rates-{number}",
        description=f"Loss of one student after {test['tokens']} tokens by peak learning rate, {title}.",
        traces=_traces(test),
        layout={
            "xaxis": _rate_axis(test),
            "yaxis": axis("loss, nats per token", range=_reach(test), nticks=6),
            "shapes": [level(before)] if (before := test["loss_before"]) is not None else [],
        },
        labels=_labels(test),
        height=280,
    )
    return RatePanel(title, factor_words(test["factor"]), figure)


def factor_words(factor: float) -> str:
    """Return a found rate in words: ``the rule\u2019s rate``, ``1/4 of the rule\u2019s``."""
    if factor == 1:
        return "the rule\u2019s rate"
    return f"{factor:g} times the rule\u2019s" if factor > 1 else f"1/{1 / factor:g} of the rule\u2019s"


def _losses(test: dict[str, Any]) -> list[float]:
    """Return what the axis has to show: the losses after training, and that before."""
    found = [loss for _, loss in test["curve"] if loss is not None]
    return [*found, test["loss_before"]] if test["loss_before"] is not None else found or [0.0]


def _reach(test: dict[str, Any]) -> list[float]:
    return padded(_losses(test), 0.12)


def _rate_axis(test: dict[str, Any]) -> Json:
    rates = [rate for rate, _ in test["curve"]]
    return axis(
        "peak learning rate",
        type="log",
        tickvals=rates,
        ticktext=[f"{rate:.1e}" for rate in rates],
        tickangle=0,
        range=padded([math.log10(rate) for rate in rates], 0.1),
    )


def _traces(test: dict[str, Any]) -> list[Json]:
    """Return the curve with its marks; a training that diverged is a cross at the upper edge."""
    known = [(rate, loss) for rate, loss in test["curve"] if loss is not None]
    diverged = [(rate, _reach(test)[1]) for rate, loss in test["curve"] if loss is None]
    found = [point for point in known if math.isclose(point[0], test["factor"] * test["rule"])]
    others = [point for point in known if point not in found]
    hollow = {"color": "@paper", "size": 8, "line": {"color": "@soft", "width": 1.4}}
    full = {"color": "@accent", "size": 11}
    crosses = {"symbol": "x-thin", "size": 9, "line": {"color": "@soft", "width": 2}}
    return [
        lines([known], "@soft 0.8", 1.4),
        scatter(others, [_hover(test, *point) for point in others], [], marker=hollow),
        scatter(found, [_hover(test, *point) for point in found], [], marker=full),
        scatter(
            diverged, [_hover(test, rate, None) for rate, _ in diverged], [], marker=crosses, cliponaxis=False
        ),
    ]


def _hover(test: dict[str, Any], rate: float, loss: float | None) -> str:
    outcome = "diverged" if loss is None else f"loss {words.nats(loss)} nats/token"
    return f"<b>{rate:.2e}</b>, {factor_words(rate / test['rule'])}<br>{outcome}<br>{plain(test['label'])}"


def _labels(test: dict[str, Any]) -> list[Label]:
    first, before = test["curve"][0][0], test["loss_before"]
    found, rule = test["factor"] * test["rule"], test["rule"]
    labels = [Label(first, before, "straight after pruning", "pruned")] if before is not None else []
    for rate, loss in test["curve"]:
        if loss is not None and math.isclose(rate, found):
            labels.append(Label(rate, loss, "found", "found", "@accent", True))
        elif loss is not None and math.isclose(rate, rule):
            labels.append(Label(rate, loss, "the rule\u2019s", "rule"))
    return labels
