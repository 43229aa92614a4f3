"""The range tests in the report: every training once, what was found marked, and rates in words."""

from __future__ import annotations

from typing import Any

import pytest

from search.report.figures.rates import factor_words, rate_panels
from search.report.tables import distillation_rows
from tests.search.report.sample import sample_summary
from tests.search.report.variants import VARIANTS


def marks(traces: list[dict[str, Any]]) -> dict[float, float]:
    shown = [trace for trace in traces if "markers" in trace["mode"]]
    return {x: y for trace in shown for x, y in zip(trace["x"], trace["y"], strict=True)}


def learning_rate(summary: dict[str, Any]) -> str:
    return dict(distillation_rows(summary))["learning rate"]


def test_every_training_stands_there_once_and_the_found_one_is_filled_in() -> None:
    [panel] = rate_panels(sample_summary())
    assert (panel.title, panel.found) == ("coordinate basis", "1/2 of the rule\u2019s")
    assert marks(panel.figure.traces) == {6.75e-4: 2.214, 1.35e-3: 2.148, 2.7e-3: 2.301}
    [filled] = [trace for trace in panel.figure.traces if trace.get("marker", {}).get("color") == "@accent"]
    assert filled["x"] == [1.35e-3]
    [line] = panel.figure.layout["shapes"]
    assert line["y0"] == 3.912
    texts = {label.text: (label.x, label.y) for label in panel.figure.labels}
    assert texts == {
        "straight after pruning": (6.75e-4, 3.912),
        "found": (1.35e-3, 2.148),
        "the rule\u2019s": (2.7e-3, 2.301),
    }
    low, high = panel.figure.layout["yaxis"]["range"]
    assert low < 2.148
    assert high > 3.912


def test_a_training_that_diverged_is_a_cross_at_the_edge() -> None:
    first, second = rate_panels(VARIANTS["everything_asked"]())
    [crosses] = [one for one in first.figure.traces if one.get("marker", {}).get("symbol") == "x-thin"]
    assert crosses["x"] == [2.7e-3]
    assert crosses["y"] == [first.figure.layout["yaxis"]["range"][1]]
    assert "diverged" in crosses["text"][0]
    assert second.title == "weighted basis"
    assert not any(label.text == "found" for label in second.figure.labels), "it was not tried"


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.0, "the rule\u2019s rate"),
        (2.0, "2 times the rule\u2019s"),
        (0.25, "1/4 of the rule\u2019s"),
        (1 / 128, "1/128 of the rule\u2019s"),
    ],
)
def test_a_rate_in_words(factor: float, words: str) -> None:
    assert factor_words(factor) == words


def test_how_the_rate_was_set_is_told() -> None:
    summary = sample_summary()
    assert learning_rate(summary) == "cosine, its peak 1/2 of the rule\u2019s, by a range test"
    summary["rates"] = {"peak": None, "factor": 1.0, "tests": []}
    assert learning_rate(summary) == "cosine, its peak the rule\u2019s rate, by a model\u2019s size"
    summary["rates"] = {"peak": 3e-4, "factor": None, "tests": []}
    assert learning_rate(summary) == "cosine, 0.0003 at its peak"
