"""Figures show what the summary holds: every evaluation once, in the right place."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.report import RankingView
from search.report.cost_axis import cost_axis
from search.report.figures.curves import curves_figure
from search.report.figures.figure import padded, round_ticks
from search.report.figures.front import front_figure, undominated
from search.report.figures.importance import importance_panels
from search.report.figures.sizes import sizes_figure
from search.report.figures.stability import stability_panels
from search.report.journeys import Role, journeys
from tests.search.report.sample import TEACHER_LOSS, sample_ranking, sample_summary
from tests.search.report.variants import VARIANTS

Point = tuple[float, float]


def marks(traces: list[dict[str, Any]]) -> list[Point]:
    """All points that are drawn with a marker."""
    shown = [trace for trace in traces if "markers" in trace.get("mode", "")]
    return sorted(point for trace in shown for point in zip(trace["x"], trace["y"], strict=True))


def test_a_journey_ends_in_retraining() -> None:
    summary = sample_summary()
    ways = journeys(summary)
    assert sum(len(way.stops) for way in ways) == 39 + 6, "a complete evaluation is missing or twice there"
    assert [way.role for way in ways[-2:]] == [Role.PROMOTED, Role.CHOSEN]
    assert [stop.stage for stop in ways[-1].stops] == ["rung 0", "rung 1", "retraining"]
    [random] = [way for way in ways if way.origin == "random-weights"]
    assert random.label == ways[-1].label
    assert [stop.stage for stop in random.stops] == ["retraining"]


def test_the_front_shows_every_evaluation_once_and_the_teacher() -> None:
    summary = sample_summary()
    figure = front_figure(summary)
    assert figure is not None
    evaluations = [*summary["trials"], *summary["promoted"], *summary["baselines"], summary["teacher"]]
    expected = sorted((one["latency_ms"], one["loss"]) for one in evaluations if one["loss"] is not None)
    assert marks(figure.traces) == expected


def test_the_front_names_what_matters_and_starts_with_what_is_decided_on() -> None:
    figure = front_figure(sample_summary())
    assert figure is not None
    texts = [label.text for label in figure.labels]
    assert texts[0] == "teacher"
    assert texts[1].startswith("chosen: ")
    assert set(texts[3:]) == {"uniform shrink", "MLP and heads only", "depth only", "random weights"}
    low, high = figure.views[0].settings["yaxis.range"]
    assert low < TEACHER_LOSS
    assert high < figure.views[1].settings["yaxis.range"][1]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1))
def test_nothing_beats_a_point_of_the_front(points: list[tuple[int, int]]) -> None:
    front = undominated([(float(x), float(y)) for x, y in points])
    for x, y in front:
        assert not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    for x, y in points:
        assert any(a <= x and b <= y for a, b in front)


def test_curves_keep_the_order_of_tokens_and_every_loss() -> None:
    summary = sample_summary()
    figure = curves_figure(summary)
    assert figure is not None
    evaluations = [*summary["trials"], *summary["promoted"], *summary["baselines"]]
    losses = sorted(one["loss"] for one in evaluations if one["loss"] is not None)
    assert sorted(y for _, y in marks(figure.traces)) == losses
    ticks = figure.layout["xaxis"]["tickvals"]
    assert ticks == sorted(ticks)
    assert figure.layout["xaxis"]["ticktext"][0] == "pruned<br>rung 0"
    assert figure.layout["xaxis"]["ticktext"][1].endswith("<br>rung 1")


def test_a_curve_starts_at_the_loss_straight_after_pruning() -> None:
    summary = sample_summary()
    for entry in [*summary["promoted"], *summary["baselines"]]:
        entry["curve"] = entry["curve"][1:]
    figure = curves_figure(summary)
    assert figure is not None
    [heavy] = [trace for trace in figure.traces if trace.get("line", {}).get("width") == 2.6]
    chosen = summary["promoted"][0]
    assert heavy["x"][0] == 0
    assert heavy["y"][:-1] == [chosen["loss_after_pruning"], *(loss for _, loss in chosen["curve"])]


def test_stability_stands_beside_the_baseline_of_size() -> None:
    first, second = stability_panels(sample_summary())
    assert (first.before, first.after, first.tau, first.by_size) == ("rung 0", "rung 1", 0.48, -0.12)
    assert (second.before, second.after, second.by_size) == ("rung 1", "retraining", 0.2)
    assert first.figure is not None
    assert second.figure is not None
    assert len(marks(first.figure.traces)) == 16
    assert len(marks(second.figure.traces)) == 5


def test_stability_with_size_alone() -> None:
    summary = sample_summary()
    summary["rank_correlation"] = [
        {"from": "parameters", "to": "rung 1", "kendall_tau": 0.1, "candidates": 16}
    ]
    [panel] = stability_panels(summary)
    assert panel.by_size is None
    assert panel.figure is not None
    assert min(x for x, _ in marks(panel.figure.traces)) > 1_000_000


def test_sizes_end_in_the_loss_with_the_chosen_model_on_top() -> None:
    summary = sample_summary()
    figure = sizes_figure(summary)
    assert figure is not None
    assert len(figure.traces) == 16
    assert summary["chosen"]["label"] in figure.traces[-1]["text"][0]
    assert figure.traces[-1]["line"]["width"] == max(trace["line"]["width"] for trace in figure.traces)
    heights = [trace["y"][-1] for trace in figure.traces]
    assert (min(heights), max(heights)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "title"),
    [("sample_summary", "latency, ms"), ("without_latency", "memory, bytes"), ("loss_alone", "parameters")],
)
def test_the_cost_is_what_was_searched_for(name: str, title: str) -> None:
    assert cost_axis(VARIANTS[name]()).title == title


def test_a_cost_that_was_never_measured_is_passed_over() -> None:
    summary = VARIANTS["without_latency"]()
    summary["objectives"].insert(1, {"name": "latency", "unit": "ms"})
    assert cost_axis(summary).name == "memory"


def test_importance_has_a_panel_for_every_axis() -> None:
    panels = importance_panels(sample_summary(), sample_ranking())
    assert [panel.title for panel in panels] == ["MLP neurons", "Heads", "Hidden dimensions", "Layers"]
    assert [panel.kept for panel in panels] == [
        "keeps 248 of 448",
        "keeps 8 of 8",
        "keeps 112 of 160",
        "keeps 8 of 8",
    ]


def test_importance_of_a_large_model_stays_small() -> None:
    scores = {f"mlp layer {layer}": [1.0 / (rank + 1) for rank in range(14_336)] for layer in range(32)}
    [panel] = importance_panels(sample_summary(), RankingView(scores))
    assert len(panel.figure.traces) == 32
    assert max(len(trace["x"]) for trace in panel.figure.traces) < 200
    assert panel.figure.traces[0]["x"][-2] == 14_335.5, "the last unit is missing"
    assert panel.figure.layout["yaxis"]["type"] == "log"


def test_importance_of_nought_and_of_unknown_axes_is_drawn() -> None:
    scores = {"experts layer 0": [0.0, 0.0], "hidden": [], "experts layer 1": [2.0, 1.0]}
    [panel] = importance_panels(VARIANTS["all_failed"](), RankingView(scores))
    assert (panel.title, panel.kept) == ("Experts", "")
    assert all(math.isfinite(y) for trace in panel.figure.traces for y in trace["y"][:-1])


@given(st.floats(1e-3, 1e9), st.floats(1.01, 1e6))
def test_round_ticks_lie_within_and_rise(low: float, factor: float) -> None:
    ticks = round_ticks(low, low * factor)
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low * factor for tick in ticks)
    assert len(ticks) <= 7


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_padded_range_holds_all_and_is_not_empty(values: list[float]) -> None:
    low, high = padded(values)
    assert low < high
    assert all(low <= value <= high for value in values)
