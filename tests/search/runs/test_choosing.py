"""Which model is taken by a person's criteria, on summaries drawn by lot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search.rungs.bracket import pareto_front
from search.runs.choice import choose_by_criteria
from search.runs.criteria import Criteria, figure_of
from space.input_error import InputError

TEACHER = {"id": "teacher", "loss": 1.5, "latency_ms": 30.0, "parameters": 1000, "objectives": {}}
VALUES = st.sampled_from([1.0, 1.25, 1.5, 2.0, 2.5, 3.0])


def entry(layers: int, loss: float | None, latency: float, origin: str = "search") -> dict[str, Any]:
    """A retrained model, told from others by its layers."""
    architecture = {"hidden": 8, "mlp": 8, "heads": 2, "kv_heads": 1, "layers": layers, "kept_layers": []}
    return {
        "label": f"h8-l{layers}",
        "origin": origin,
        "architecture": architecture,
        "parameters": 100 * layers,
        "loss": loss,
        "latency_ms": latency,
        "objectives": {},
        "path": f"models/{layers}",
        "bits_per_byte": None,
    }


def summary_of(
    entries: list[dict[str, Any]], trials: Sequence[Any] = (), bounds: dict[str, float] | None = None
) -> dict[str, Any]:
    """What choosing reads of a summary."""
    return {
        "name": "run",
        "command": "python -m search.run --budget 1M",
        "basis": {"name": "weighted"},
        "teacher": TEACHER,
        "promoted": [one for one in entries if one["origin"] == "search"],
        "baselines": [one for one in entries if one["origin"] != "search"],
        "trials": trials,
        "bounds": [{"name": name, "unit": "", "most": most} for name, most in (bounds or {}).items()],
        "least": [],
    }


ENTRIES = st.lists(
    st.builds(
        entry,
        st.integers(1, 8),
        st.none() | VALUES,
        VALUES.map(lambda value: 10 * value),
        st.sampled_from(["search", "search", "uniform", "random-weights"]),
    ),
    unique_by=lambda one: (one["label"], one["origin"] == "random-weights"),
    max_size=8,
)


@given(ENTRIES)
def test_without_wishes_and_by_the_loss_alone_it_is_the_same_model(entries: list[dict[str, Any]]) -> None:
    summary = summary_of(entries)
    plain, weighted = (
        choose_by_criteria(summary, Criteria()),
        choose_by_criteria(summary, Criteria(weights={"loss": 2.0})),
    )
    losses = [one["loss"] for one in entries if one["origin"] != "random-weights" and one["loss"] is not None]
    assert (plain.chosen is None) == (not losses)
    if plain.chosen is not None:
        assert plain.chosen["loss"] == min(losses)
        assert weighted.chosen == plain.chosen
        assert plain.chosen["origin"] != "random-weights"


@given(ENTRIES, VALUES, VALUES)
def test_a_tighter_bound_never_yields_a_lower_loss(
    entries: list[dict[str, Any]], one: float, other: float
) -> None:
    tight, wide = sorted((10 * one, 10 * other))
    narrow, broad = (
        choose_by_criteria(summary_of(entries), Criteria({"latency": most})) for most in (tight, wide)
    )
    if narrow.chosen is None:
        return
    assert broad.chosen is not None
    assert narrow.chosen["loss"] >= broad.chosen["loss"]
    assert narrow.chosen["latency_ms"] <= tight


@given(ENTRIES, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_the_chosen_is_on_the_front_of_what_is_weighted(
    entries: list[dict[str, Any]], loss: float, latency: float
) -> None:
    ready = [one for one in entries if one["origin"] != "random-weights" and one["loss"] is not None]
    assume(ready)
    chosen = choose_by_criteria(
        summary_of(entries), Criteria(weights={"latency": latency, "loss": loss})
    ).chosen
    front = pareto_front([[one["loss"], one["latency_ms"]] for one in ready])
    assert chosen in [ready[place] for place in front]


def test_the_runner_up_is_the_second_and_said_why_not() -> None:
    summary = summary_of([entry(3, 2.0, 20.0), entry(4, 1.9, 30.0), entry(5, 2.5, 5.0)])
    found = choose_by_criteria(summary, Criteria())
    assert (found.chosen, found.runner_up) == (summary["promoted"][1], summary["promoted"][0])
    assert found.why_not == "loss 0.1000 nats higher, latency 33.3% lower"
    weighted = choose_by_criteria(summary, Criteria(weights={"loss": 1.0, "latency": 1.0}))
    assert weighted.chosen == summary["promoted"][2]
    assert weighted.reason == (
        "lowest weighted sum of 3 retrained models, 1.8333: 1 × 1.667 of loss + 1 × 0.167 of latency, "
        "as shares of the teacher's"
    )
    assert weighted.why_not == "weighted sum 0.1667 higher: loss 0.5000 nats lower, latency 300.0% higher"


def trial(layers: int, rung: int, loss: float, latency: float, **more: Any) -> dict[str, Any]:
    return entry(layers, loss, latency) | {"rung": rung, "state": "complete", "over": {}, **more}


def test_if_none_lies_within_the_nearest_and_a_candidate_are_named() -> None:
    trials = [
        trial(3, 1, 2.0, 20.0),
        trial(6, 0, 2.9, 4.0),
        trial(7, 1, 2.8, 4.0),
        trial(8, 1, 2.7, 4.5),
        trial(9, 1, 2.6, 6.0),
    ]
    found = choose_by_criteria(
        summary_of([entry(3, 2.0, 20.0), entry(4, 1.9, 30.0)], trials), Criteria({"latency": 5.0})
    )
    assert found.chosen is None
    assert found.choice is None
    assert found.nearest is not None
    assert found.nearest["label"] == "h8-l3"
    assert found.reason == (
        "No retrained model lies within latency ≤ 5 ms; the nearest, h8-l3, is over the bound: "
        "latency by 15 ms"
    )
    assert found.candidate is not None
    assert found.candidate["label"] == "h8-l8", "the highest rung's lowest loss, within the bound"
    assert found.command == (
        "python -m search.run --budget 1M --sizes hidden=8 mlp=8 heads=2 kv_heads=1 layers=8 "
        "--basis weighted --retrain-baselines False --study-name run-h8-l8"
    )


def test_the_command_of_a_family_would_begin_more_than_one_run() -> None:
    summary = summary_of([entry(3, 2.0, 20.0)], [trial(8, 1, 2.7, 4.5)])
    summary["command"] = "python -m search.run --budget 6B,4B --model teacher"
    found = choose_by_criteria(summary, Criteria({"latency": 5.0}))
    assert found.candidate is not None
    assert found.command == ""


def test_what_the_run_bounds_stays_bounded() -> None:
    trials = [trial(3, 0, 2.0, 20.0, over={"latency": 5.0}), trial(4, 0, 2.5, 10.0)]
    summary = summary_of([entry(3, 1.5, 20.0), entry(4, 1.9, 10.0)], trials, {"latency": 15.0})
    for criteria in (Criteria(), Criteria({"latency": 50.0}), Criteria(weights={"loss": 1.0})):
        chosen = choose_by_criteria(summary, criteria).chosen
        assert chosen is not None
        assert chosen["label"] == "h8-l4"


def test_what_the_run_did_not_measure_is_refused() -> None:
    summary = summary_of([entry(3, 1.5, 20.0)])
    for criteria in (Criteria({"memory": 1.0}), Criteria(weights={"memory": 1.0})):
        with pytest.raises(InputError) as caught:
            choose_by_criteria(summary, criteria)
        assert caught.value.values == "run did not measure memory"
        assert caught.value.remedy == "Choose by loss, latency, parameters"
    assert figure_of(TEACHER, "memory") is None
