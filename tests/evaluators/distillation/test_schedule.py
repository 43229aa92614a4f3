from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.distillation.schedule import Schedule, ScheduleShape, peak_rate


def schedule(steps: int, peak: float = 1.0) -> Schedule:
    return Schedule(tokens=steps * 8 * 16, blocks=8, block=16, peak_rate=peak)


@pytest.mark.parametrize(
    ("tokens", "steps"), [(1, 1), (128, 1), (191, 1), (193, 2), (1280, 10), (1279, 10), (1400, 11)]
)
def test_tokens_are_rounded_to_whole_steps(tokens: int, steps: int) -> None:
    assert Schedule(tokens=tokens, blocks=8, block=16, peak_rate=1.0).steps == steps


@pytest.mark.parametrize(("steps", "warm_up"), [(1, 1), (9, 1), (40, 4), (400, 40), (600, 60), (5000, 60)])
def test_the_warm_up_is_a_tenth_and_at_most_60_steps(steps: int, warm_up: int) -> None:
    assert schedule(steps).warm_up == warm_up


def test_rates_of_a_schedule_of_a_hundred_steps() -> None:
    some = schedule(100, peak=2.0)
    assert [some.rate(step) for step in range(10)] == pytest.approx([0.2 * n for n in range(1, 11)])
    assert some.rate(10) == 2.0
    assert some.rate(55) == pytest.approx(2.0 * (0.1 + 0.45))  # half of the way down
    assert some.rate(100) == pytest.approx(0.2)  # a tenth of the peak
    assert some.rate(99) == pytest.approx(2.0 * (0.1 + 0.45 * (1 - math.cos(math.pi / 90))))


@given(st.integers(1, 3000), st.floats(1e-6, 1.0))
def test_rates_rise_to_the_peak_and_then_fall_to_a_tenth(steps: int, peak: float) -> None:
    some = schedule(steps, peak)
    rates = [some.rate(step) for step in range(some.steps)]
    rising, falling = rates[: some.warm_up], rates[some.warm_up :]
    assert rising == sorted(rising)
    assert rising[-1] == pytest.approx(peak)
    assert falling == sorted(falling, reverse=True)
    assert 0 < min(rates) <= max(rates) <= peak * (1 + 1e-12)
    assert min([peak, *falling]) >= 0.1 * peak * (1 - 1e-12)


def stable(steps: int, warm_up: int | None = 10) -> Schedule:
    return Schedule(
        tokens=steps * 128, blocks=8, block=16, peak_rate=1.0, shape=ScheduleShape.WSD, warm_up_steps=warm_up
    )


def test_rates_of_a_stable_schedule_of_a_hundred_steps() -> None:
    rates = [stable(100).rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([1 - 0.9 * n / 20 for n in range(1, 21)])
    assert rates[-1] == pytest.approx(0.1)
    assert stable(100).decay_begins == 80
    assert schedule(100).decay_begins is None


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 80))
def test_until_it_falls_a_stable_schedule_is_the_beginning_of_every_longer_one(
    one: int, other: int, warm_up: int
) -> None:
    short, long = (stable(steps, warm_up) for steps in sorted((one, other)))
    begins, of_long = short.decay_begins, long.decay_begins
    assert begins is not None
    assert of_long is not None
    assert begins <= of_long
    assert [short.rate(step) for step in range(begins)] == [long.rate(step) for step in range(begins)]


@given(st.integers(1, 3000), st.none() | st.integers(1, 80))
def test_a_stable_schedule_rises_stays_and_falls_to_a_tenth(steps: int, warm_up: int | None) -> None:
    some = stable(steps, warm_up)
    begins = some.decay_begins
    assert begins is not None
    rates = [some.rate(step) for step in range(steps)]
    assert rates[: some.warm_up] == sorted(rates[: some.warm_up])
    assert set(rates[some.warm_up : begins]) <= {1.0}
    assert rates[begins:] == sorted(rates[begins:], reverse=True)
    assert begins == steps or rates[-1] == pytest.approx(0.1)
    assert 0 < min(rates) <= max(rates) <= 1


def test_peak_rates_by_size() -> None:
    assert peak_rate(1_000_000) == pytest.approx(4e-3)
    assert peak_rate(4_000_000_000) == pytest.approx(1e-4)
    assert peak_rate(int((1e6 * 4e9) ** 0.5)) == pytest.approx((4e-3 * 1e-4) ** 0.5, rel=1e-6)
    assert peak_rate(1000) == 4e-3


def test_a_short_training_has_a_lower_rate() -> None:
    assert peak_rate(10**6, 4) == pytest.approx(2e-3)
    assert peak_rate(10**6, 1) == pytest.approx(1e-3)
    assert peak_rate(10**6, 16) == peak_rate(10**6, 10**6) == peak_rate(10**6)
    assert peak_rate(10**6, step_tokens=512) == pytest.approx(2e-3)
    assert peak_rate(10**6, step_tokens=2048) == peak_rate(10**6, step_tokens=10**6) == peak_rate(10**6)
    assert peak_rate(10**6, 4, 512) == pytest.approx(1e-3)


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_larger_student_never_learns_faster(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert peak_rate(large) <= peak_rate(small)
