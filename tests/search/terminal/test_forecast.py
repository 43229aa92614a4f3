"""The time left, against schedules whose every second is known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.terminal.console import TimeForecast

#: A run in the order of its work: ranking and targets, then the rungs in turns, then retraining.
JOBS = [
    ("forward", 5000),
    *[("score", 400), ("score", 400), ("distil", 1500)] * 6,
    *[("retrain", 9000)] * 3,
]
#: Seconds a token that a forecast takes for granted: training costs two forward passes.
USUAL = {"forward": 1e-3, "score": 1e-3, "distil": 2e-3, "retrain": 2e-3}
STEPS = 10


def planned() -> dict[str, int]:
    return {kind: sum(tokens for k, tokens in JOBS if k == kind) for kind in USUAL}


def lived(forecast: TimeForecast, paces: dict[str, float]) -> Iterator[tuple[int, float | None, float]]:
    """After each step of work: jobs finished, the time left as forecast, and as it is."""
    left = sum(tokens * paces[kind] for kind, tokens in JOBS)
    for finished, (kind, tokens) in enumerate(JOBS):
        for step in range(STEPS):
            forecast.spend(kind, tokens // STEPS, tokens // STEPS * paces[kind])
            left -= tokens // STEPS * paces[kind]
            yield finished + (step == STEPS - 1), forecast.left(), left


def test_at_the_usual_paces_the_time_left_is_exact_from_the_first_step_on() -> None:
    forecast = TimeForecast(planned())
    assert forecast.left() is None
    for _, said, left in lived(forecast, USUAL):
        assert said == pytest.approx(left, abs=1e-6)
    assert forecast.left() == 0.0


@given(st.fixed_dictionaries({kind: st.floats(1e-5, 1e-1) for kind in ("forward", "score", "distil")}))
def test_at_any_constant_paces_it_is_within_a_quarter_once_two_were_distilled(
    paces: dict[str, float],
) -> None:
    paces = {**paces, "retrain": paces["distil"] * 1.2}
    second = [place for place, (kind, _) in enumerate(JOBS, start=1) if kind == "distil"][1]
    forecast = TimeForecast(planned())
    for finished, said, left in lived(forecast, paces):
        if finished >= second:
            assert said == pytest.approx(left, rel=0.25, abs=1e-6)
    assert forecast.left() == 0.0


@given(st.floats(1e-5, 1e-1), st.floats(1e-5, 1e-1))
def test_the_time_left_never_rises_while_the_paces_are_constant_and_known(short: float, long: float) -> None:
    forecast = TimeForecast({"score": 1000, "distil": 1000})
    forecast.spend("score", 100, 100 * short)
    forecast.spend("distil", 100, 100 * long)
    said = []
    for kind, pace in [("score", short), ("distil", long)] * 9:
        forecast.spend(kind, 100, 100 * pace)
        said.append(forecast.left())
    assert None not in said
    assert said == pytest.approx(sorted(said, key=lambda left: -(left or 0)))
    assert said[-1] == 0.0


def test_what_an_earlier_process_did_is_done_and_says_nothing_of_the_pace() -> None:
    forecast = TimeForecast({"score": 1000})
    forecast.skip("score", 900)
    assert forecast.left() is None
    forecast.spend("score", 50, 5.0)
    assert forecast.left() == pytest.approx(5.0)


def test_training_not_yet_timed_is_as_fast_as_training_of_another_kind() -> None:
    forecast = TimeForecast({"retrain": 1000})
    forecast.spend("score", 100, 100.0)
    assert forecast.left() == pytest.approx(2000.0), "two forward passes, for want of better"
    forecast.spend("distil", 100, 0.5)
    assert forecast.left() == pytest.approx(5.0)


def test_more_work_than_planned_is_never_less_than_nothing() -> None:
    forecast = TimeForecast({"score": 100, "distil": 100})
    forecast.spend("score", 500, 5.0)
    assert forecast.left() == pytest.approx(2.0)


def test_without_a_plan_nothing_is_said() -> None:
    assert TimeForecast({}).left() is None


def piece(
    forecast: TimeForecast, kind: str, tokens: int, overhead: float, pace: float, every: int = 50
) -> float:
    """A training whose first step comes after the overhead; the seconds that it took."""
    seconds = overhead + tokens * pace
    forecast.spend(kind, every, overhead + every * pace)
    for done in range(2 * every, tokens + 1, every):
        forecast.spend(kind, every, every * pace)
        forecast.step(kind, every, every * pace, done / tokens)
    forecast.finish(kind, tokens, seconds, whole=True)
    return seconds


@given(st.floats(0.0, 20.0), st.floats(1e-3, 1e-1))
def test_short_trainings_foretell_long_ones_though_each_takes_time_for_itself(
    overhead: float, pace: float
) -> None:
    forecast = TimeForecast({"distil": 6 * 200 + 800, "retrain": 4 * 3000}, {"distil": 7, "retrain": 4})
    for _ in range(6):
        piece(forecast, "distil", 200, overhead, pace)
    long = 800 * pace + 4 * 3000 * pace
    assert forecast.left() == pytest.approx(long + 5 * overhead, rel=1e-6)
    piece(forecast, "distil", 800, overhead, pace)
    assert forecast.left() == pytest.approx(4 * (3000 * pace + overhead), rel=1e-6)
    piece(forecast, "retrain", 3000, 2 * overhead, pace)
    assert forecast.left() == pytest.approx(3 * (3000 * pace + 2 * overhead), rel=1e-6)


def test_a_step_that_was_held_up_does_not_change_the_pace() -> None:
    forecast = TimeForecast({"distil": 600}, {"distil": 2})
    for place in range(6):
        forecast.spend("distil", 50, 9.0 if place == 3 else 1.0)
        if place:
            forecast.step("distil", 50, 9.0 if place == 3 else 1.0, (place + 1) / 6)
    forecast.finish("distil", 300, 14.0, whole=True)
    assert forecast.pace("distil") == pytest.approx(1 / 50)
    assert forecast.left() == pytest.approx(14.0), "it belongs to what a training takes for itself"


def test_a_training_that_is_half_done_has_half_of_its_overhead_left() -> None:
    forecast = TimeForecast({"distil": 400}, {"distil": 2})
    piece(forecast, "distil", 200, 10.0, 0.01)
    forecast.spend("distil", 50, 5.5)
    forecast.spend("distil", 50, 0.5)
    forecast.step("distil", 50, 0.5, 0.5)
    assert forecast.left() == pytest.approx(100 * 0.01 + 0.5 * 10.0)


def test_trainings_that_others_did_have_no_overhead_left() -> None:
    forecast = TimeForecast({"distil": 600}, {"distil": 3})
    piece(forecast, "distil", 200, 10.0, 0.01)
    forecast.skip("distil", 200, pieces=1)
    assert forecast.left() == pytest.approx(12.0)
    forecast.extra["distil"], forecast.extra_pieces["distil"] = 200, 1
    assert forecast.left() == pytest.approx(24.0)
