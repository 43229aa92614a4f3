"""Figures show what the summary holds: every evaluation once, in the right place."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.report import RankingView
from search.report.figures.curves import curves_figure
from search.report.figures.figure import padded, round_ticks
from search.report.figures.foresight import intervals_figure, stability_panels
from search.report.figures.front import front_figure, undominated
from search.report.figures.importance import energy_kept, importance_panels
from search.report.figures.pairs import front_with_menu
from search.report.figures.sizes import sizes_figure
from search.runs.summary import cost_axis
from search.runs.trajectories import Role, trajectories
from space.cutting.ranking import Profile, profile_of
from tests.search.report.sample import TEACHER_LOSS, sample_ranking, sample_summary
from tests.search.report.variants import VARIANTS

Point = tuple[float, float]


def marks(traces: list[dict[str, Any]]) -> list[Point]:
    """All points that are drawn with a marker."""
    shown = [trace for trace in traces if "markers" in trace.get("mode", "")]
    return sorted(point for trace in shown for point in zip(trace["x"], trace["y"], strict=True))


def test_a_journey_ends_in_retraining() -> None:
    summary = sample_summary()
    ways = trajectories(summary)
    assert sum(len(way.points) for way in ways) == 39 + 6, "a complete evaluation is missing or twice there"
    assert [way.role for way in ways[-2:]] == [Role.PROMOTED, Role.CHOSEN]
    assert [point.stage for point in ways[-1].points] == ["rung 0", "rung 1", "retraining"]
    [random] = [way for way in ways if way.origin == "random-weights"]
    assert random.label == ways[-1].label
    assert [point.stage for point in random.points] == ["retraining"]


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
    first, middle, second = stability_panels(sample_summary())
    assert (first.before, first.after, first.tau, first.by_size) == ("rung 0", "rung 1", 0.48, -0.12)
    assert (middle.before, middle.after, middle.by_size) == ("rung 0", "retraining", 0.2)
    assert (second.before, second.after, second.by_size) == ("rung 1", "retraining", 0.2)
    assert first.figure is not None
    assert second.figure is not None
    assert len(marks(first.figure.traces)) == 16
    assert len(marks(second.figure.traces)) == 5


def test_stability_with_size_alone() -> None:
    summary = sample_summary()
    summary["rank_correlation"] = [
        {"from": "parameters", "to": "rung 1", "kendall_tau": 0.1, "regret": 0.2, "candidates": 16}
    ]
    [panel] = stability_panels(summary)
    assert panel.by_size is None
    assert panel.figure is not None
    assert min(x for x, _ in marks(panel.figure.traces)) > 1_000_000


def test_every_retrained_model_has_its_interval_and_what_came() -> None:
    summary = sample_summary()
    told = {one["label"]: one for one in summary["forecast"]["candidates"]}
    figure = intervals_figure(summary)
    assert figure is not None
    names = figure.layout["yaxis"]["ticktext"]
    assert len(names) == 16
    bars = [trace for trace in figure.traces if trace["mode"] == "lines"]
    shown = [one for one in told.values() if [one["low"], one["high"], None] in [bar["x"] for bar in bars]]
    assert len(shown) == len(bars) == 16
    came = {one["label"]: one["outcome"] for one in told.values() if one["outcome"] is not None}
    assert came.keys() <= {one["label"] for one in shown}
    drawn = marks(figure.traces)
    assert sorted(x for x, _ in drawn) == sorted([one["loss"] for one in shown] + list(came.values()))
    heights = [told["loss"] for told in sorted(shown, key=lambda told: float(told["loss"]))]
    assert [bar["y"][0] for bar in bars] == list(range(16))
    assert [x for x, _ in sorted(drawn, key=lambda point: point[1]) if x in heights] == heights
    assert names[3] == f"chosen: {summary['chosen']['label']}"


def test_without_a_forecast_there_is_no_interval() -> None:
    assert intervals_figure(VARIANTS["nothing_evaluated"]()) is None


def test_many_retrained_models_all_have_a_row() -> None:
    summary = sample_summary()
    for one in summary["forecast"]["candidates"]:
        one["outcome"] = one["loss"]
    figure = intervals_figure(summary)
    assert figure is not None
    assert len(figure.layout["yaxis"]["ticktext"]) == len(summary["forecast"]["candidates"]) == 23


def test_sizes_end_in_the_loss_with_the_chosen_model_on_top() -> None:
    summary = sample_summary()
    figure = sizes_figure(summary)
    assert figure is not None
    assert len(figure.traces) == 16
    assert summary["chosen"]["label"] in figure.traces[-1]["text"]
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


def test_importance_has_panels_for_every_axis() -> None:
    panels = importance_panels(sample_summary(), sample_ranking())
    assert [(panel.title, panel.kept) for panel in panels] == [
        ("MLP neurons", "keeps 248 of 448"),
        ("MLP neurons: energy", "248 of 448 keep 99.8%"),
        ("Heads", "keeps 8 of 8"),
        ("Heads: energy", "8 of 8 keep 100.0%"),
        ("Hidden dimensions: energy", "112 of 160 keep 97.0%"),
        ("Layers", "keeps 8 of 8"),
    ]


def view_of(**scores: torch.Tensor) -> RankingView:
    return RankingView({name: profile_of(of) for name, of in scores.items()})


def test_importance_of_a_large_model_stays_small() -> None:
    """8B: 32 layers of 14336 neurons; and of a mixture 256 experts of 2048 neurons each."""
    neurons = 1 / torch.arange(1.0, 14_337).expand(32, -1)
    ranking = view_of(mlp=neurons, expert_mlp=torch.ones(61, 256, 2048), hidden=torch.ones(7168))
    panels = importance_panels(sample_summary(), ranking)
    assert len(panels) == 5
    assert len(json.dumps([panel.figure.data() for panel in panels])) < 1_000_000


def test_a_heat_map_has_a_row_a_layer_over_the_highest_of_all() -> None:
    scores = torch.tensor([[1.0, 10.0], [0.0, 0.0], [1e-9, 100.0]])
    heat, _ = importance_panels(VARIANTS["all_failed"](), view_of(experts=scores))
    [trace] = heat.figure.traces
    assert (heat.title, heat.kept, trace["x"]) == ("Experts", "", [0, 1, 2])
    assert trace["z"] == [[-1, -2], [None, None], [0, -3]], "layer 1 has no experts"
    assert trace["customdata"][0] == [0.1, 0.01]


def test_what_the_chosen_model_drops_is_dimmed_in_a_heat_map() -> None:
    summary = sample_summary()
    chosen = summary["promoted"][0]["architecture"]
    chosen.update(mlp=3, kept_layers=[0, 2])
    heat, energy, *_ = importance_panels(summary, view_of(mlp=torch.ones(3, 4)))
    row, column, edge = heat.figure.layout["shapes"]
    assert (row["y0"], row["y1"], row["fillcolor"]) == (0.5, 1.5, "@paper 0.75")
    assert (column["x0"], column["x1"], edge["x0"]) == (3, 4, 3)
    assert (heat.kept, energy.kept) == ("keeps 3 of 4", "3 of 4 keep 75.0%")


@given(st.integers(1, 700), st.integers(1, 3), st.data())
def test_energy_kept_is_the_share_of_the_squares(units: int, layers: int, data: st.DataObject) -> None:
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scores = torch.rand(layers, units, generator=seed, dtype=torch.float64)
    profile = profile_of(scores)
    kept = data.draw(st.sampled_from(profile.edges))
    best = scores.square().sort(dim=-1, descending=True).values
    wanted = float((best[:, :kept].sum(-1) / best.sum(-1)).mean())
    assert energy_kept(profile, kept) == pytest.approx(wanted, abs=2e-4)


def test_between_two_groups_energy_rises_straight() -> None:
    profile = Profile((0, 4, 8), ((2.0, 1.0),), ((0.0, 0.8, 1.0),))
    assert [energy_kept(profile, kept) for kept in (0, 2, 4, 6, 8)] == pytest.approx([0, 0.4, 0.8, 0.9, 1])


def test_importance_of_nought_is_drawn() -> None:
    heat, energy = importance_panels(VARIANTS["all_failed"](), view_of(experts=torch.zeros(2, 2)))
    assert heat.figure.traces[0]["z"] == [[-3, -3], [-3, -3]]
    assert energy.figure.traces[0]["y"] == [0, 0.5, 1, None]


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


def _with_three() -> dict[str, Any]:
    """Loss, latency and a task."""
    summary = VARIANTS["sample_summary"]()
    summary["objectives"].append({"name": "quiz", "unit": "nats"})
    for place, entry in enumerate((*summary["trials"], *summary["promoted"], *summary["baselines"])):
        if entry["loss"] is not None:
            entry["objectives"]["quiz"] = entry["loss"] - 9 + (place % 3) / 4
    summary["teacher"]["objectives"] = {**summary["teacher"].get("objectives", {}), "quiz": -8.0}
    return summary


def test_the_front_has_a_menu_of_every_other_pair_of_objectives() -> None:
    figure = front_with_menu(_with_three())
    assert figure is not None
    assert figure.title == "loss and latency"
    assert list(figure.alternatives) == ["loss and quiz", "quiz and latency"]
    data = json.loads(json.dumps(figure.data()))
    assert [one["name"] for one in data["alternatives"]] == list(figure.alternatives)
    for one in figure.alternatives.values():
        stairs = one.traces[1]
        points = [point for point in zip(stairs["x"], stairs["y"], strict=True) if None not in point]
        assert points == undominated(points) != []
        assert one.layout["xaxis"]["title"]["text"].endswith("(less is better)")


def test_two_objectives_need_no_menu() -> None:
    figure = front_with_menu(sample_summary())
    assert figure is not None
    assert figure.alternatives == {}
    assert front_with_menu(VARIANTS["nothing_evaluated"]()) is None


def test_a_pair_of_which_one_was_not_measured_is_left_out() -> None:
    summary = _with_three()
    summary["objectives"].append({"name": "riddle", "unit": "nats"})
    figure = front_with_menu(summary)
    assert figure is not None
    assert list(figure.alternatives) == ["loss and quiz", "quiz and latency"]
