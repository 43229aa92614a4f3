"""Forecasts against laws whose end is known, and intervals against how often they ought to hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.foresight.foresight import Coverage, Forecast, coverage, forecast

RUNGS, TOKENS, TEACHER = (0, 10_000, 40_000), 160_000, 2.0
Curves = dict[str, list[tuple[int, float]]]
#: Loss at rung 0, and the share of the excess over the teacher that each later rung leaves.
LOSSES = st.lists(
    st.tuples(st.floats(2.5, 9.0), st.floats(0.3, 0.95), st.floats(0.3, 0.95)), min_size=1, max_size=4
)


def law(tokens: int, amplitude: float, floor: float, turn: float, power: float) -> float:
    """The loss after so many tokens."""
    return floor + amplitude * math.exp(-power * math.log1p(tokens / turn))


def curves_of(losses: list[tuple[float, float, float]]) -> Curves:
    """Curves that fall towards the teacher's loss; the first candidate is on all rungs, the last on one."""
    found = {}
    for place, (start, first, second) in enumerate(losses):
        excess = start - TEACHER
        ways = [start, TEACHER + excess * first, TEACHER + excess * first * second]
        found[f"c{place}"] = list(zip(RUNGS, ways, strict=True))[: max(1, 3 - place)]
    return found


def drawn_run(random: np.random.Generator, candidates: int, tokens: int) -> tuple[Curves, dict[str, float]]:
    """Curves and their ends, with all that is unknown drawn as the module says that it is thought of."""

    def scale(low: float, high: float) -> float:
        return float(low * (high / low) ** random.random())

    turn, power, share = scale(0.01 * RUNGS[1], tokens), random.uniform(0.05, 1), random.random()
    walk = 0.1 * math.sqrt(2 / random.chisquare(2))
    slopes, repairs = (walk * math.sqrt(one) for one in (scale(0.01, 10), scale(0.1, 100)))
    ways = np.diff(np.log1p(np.array([*RUNGS, tokens]) / turn))
    together = walk * np.sqrt(ways) * random.standard_normal(3) - power * ways
    together[0] /= 1 - share
    own = walk * np.sqrt(ways) * random.standard_normal((candidates, 3))
    own += slopes * ways * random.standard_normal((candidates, 1))
    own[:, 0] += repairs * random.standard_normal(candidates)
    start = 0.7 + 0.2 * random.standard_normal((candidates, 1))
    excess = np.exp(np.hstack([start, start + np.cumsum(own + together, axis=1)]))
    floor = min(scale(0.01, 1), 0.98)
    losses = TEACHER + floor / (1 - floor) * excess[:, :-1].min() + excess
    rows = {str(i): list(zip(RUNGS, row.tolist(), strict=False)) for i, row in enumerate(losses)}
    rows[str(candidates - 1)] = rows[str(candidates - 1)][:1]  # the last was not distilled
    return rows, {str(i): float(row[-1]) for i, row in enumerate(losses)}


@pytest.mark.parametrize(
    "tokens", [pytest.param(45_000, marks=pytest.mark.slow, id="near"), pytest.param(TOKENS, id="far")]
)
def test_intervals_hold_nine_times_in_ten(tokens: int) -> None:
    random = np.random.default_rng(0)
    held = []
    for _ in range(120):
        curves, outcomes = drawn_run(random, 3, tokens)
        held.append(coverage(forecast(curves, tokens, TEACHER), outcomes).held / 3)
    # Candidates of one run share what is unknown, so runs count and not candidates. It may hold a little more
    # often, since how candidates differ is kept from saying what law they follow.
    error = np.std(held, ddof=1) / math.sqrt(len(held))
    assert 0.9 - 2 * error < np.mean(held) < 0.95 + 2 * error
    assert error < 0.02, "or the test could not fail"


@pytest.mark.parametrize("power", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("turn", [3_000.0, 30_000.0])
def test_a_law_without_noise_is_followed(power: float, turn: float) -> None:
    amplitudes = {f"c{i}": 0.8 + 0.1 * i for i in range(8)}
    curves = {
        label: [(t, law(t, one, TEACHER + 0.05, turn, power)) for t in RUNGS]
        for label, one in amplitudes.items()
    }
    for label, found in forecast(curves, TOKENS, TEACHER).items():
        truth = law(TOKENS, amplitudes[label], TEACHER + 0.05, turn, power)
        ends = curves[label][-1][1], TEACHER
        assert abs(found.loss - truth) < min(abs(end - truth) for end in ends) / 2


def test_noise_widens_the_interval() -> None:
    random = np.random.default_rng(1)

    def width(noise: float) -> float:
        curves = {}
        for label, row in enumerate(random.standard_normal((8, 3))):
            excess = [law(t, 1.0, 0, 5e3, 0.4) for t in RUNGS] * np.exp(noise * row)
            curves[str(label)] = list(zip(RUNGS, (TEACHER + excess).tolist(), strict=True))
        found = forecast(curves, TOKENS, TEACHER).values()
        return float(np.mean([one.high - one.low for one in found]))

    assert width(0.005) < width(0.05) < width(0.2)


def test_who_gained_faster_is_expected_lower_from_the_same_loss() -> None:
    falling = {f"c{i}": [(0, 3.0 + 0.2 * i), (10_000, 2.8 + 0.1 * i), (40_000, 2.6)] for i in range(6)}
    found = forecast(falling, TOKENS, TEACHER)
    losses = [found[f"c{i}"].loss for i in range(6)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.01


def test_who_was_not_distilled_is_expected_to_recover_from_the_cut_as_the_others_did() -> None:
    curves: Curves = {f"c{i}": [(0, 5.0), (10_000, 2.6 + 0.01 * i), (40_000, 2.5)] for i in range(8)}
    found = forecast({**curves, "pruned": [(0, 5.0)]}, TOKENS, TEACHER)
    assert found["pruned"].loss == pytest.approx(found["c4"].loss, abs=0.03)
    assert found["pruned"].high - found["pruned"].low > found["c4"].high - found["c4"].low


@pytest.mark.parametrize(
    "curves",
    [
        {"a": [(0, 4.0)]},
        {"a": [(0, 4.0), (10_000, 3.0)]},
        {"a": [(0, 4.0)], "b": [(0, 5.0)]},
        {"a": [(0, 3.0), (10_000, 3.0), (40_000, 3.0)]},
        {"a": [(0, 3.0), (10_000, 3.5)]},
        {"a": [(0, 900.0), (10_000, 2.5)]},
        {"a": [(10_000, 1.5)], "b": [(0, 4.0), (10_000, 1.9)]},
        {"a": [(0, 2.0)]},
    ],
    ids=["pruned", "one", "two pruned", "flat", "rising", "far", "below the teacher", "as the teacher"],
)
def test_little_to_go_by_has_an_interval_all_the_same(curves: Curves) -> None:
    for found in forecast(curves, TOKENS, TEACHER).values():
        assert math.isfinite(found.high - found.low)
        assert found.low < found.loss < found.high


def test_the_less_was_seen_the_wider_the_interval() -> None:
    whole = {f"c{i}": [(t, law(t, 1 + 0.1 * i, TEACHER, 5e3, 0.4)) for t in RUNGS] for i in range(8)}
    widths = []
    for rungs in (1, 2, 3):
        found = forecast({label: curve[:rungs] for label, curve in whole.items()}, TOKENS, TEACHER)
        widths.append(found["c0"].high - found["c0"].low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_the_end_that_was_seen_is_known() -> None:
    found = forecast({"a": [(0, 4.0), (TOKENS, 2.5)]}, TOKENS, TEACHER)["a"]
    assert found.loss == pytest.approx(2.5)
    assert found.high - found.low == pytest.approx(0.001)


def test_what_lies_beyond_is_passed_over() -> None:
    near = {"a": [(0, 4.0), (10_000, 3.0)], "b": [(0, 4.5)]}
    far = {"a": [*near["a"], (2 * TOKENS, 1.0)], "b": near["b"], "c": [(2 * TOKENS, 2.0)]}
    assert forecast(far, TOKENS, TEACHER) == forecast(near, TOKENS, TEACHER)
    assert forecast({}, TOKENS, TEACHER) == {}


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        forecast({"a": [(0, math.nan)]}, TOKENS, TEACHER)


@settings(max_examples=15, deadline=None)
@given(LOSSES, st.floats(-1.0, 5.0))
def test_a_constant_more_everywhere_is_a_constant_more(
    losses: list[tuple[float, float, float]], more: float
) -> None:
    curves = curves_of(losses)
    moved = {label: [(t, loss + more) for t, loss in curve] for label, curve in curves.items()}
    after = forecast(moved, TOKENS, TEACHER + more)
    for label, found in forecast(curves, TOKENS, TEACHER).items():
        for name in ("loss", "low", "high"):
            assert getattr(after[label], name) == pytest.approx(getattr(found, name) + more, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(LOSSES, st.randoms(use_true_random=False))
def test_the_order_of_candidates_is_of_no_matter(
    losses: list[tuple[float, float, float]], random: object
) -> None:
    curves = curves_of(losses)
    labels = list(curves)
    random.shuffle(labels)  # type: ignore[attr-defined]
    assert forecast({label: curves[label] for label in labels}, TOKENS, TEACHER) == forecast(
        curves, TOKENS, TEACHER
    )


def test_coverage_by_hand() -> None:
    forecasts = {"a": Forecast(2.0, 1.9, 2.1), "b": Forecast(3.0, 2.9, 3.1), "c": Forecast(1.0, 0.0, 2.0)}
    found = coverage(forecasts, {"a": 2.05, "b": 3.25, "unknown": 1.0})
    assert (found.held, found.outcomes) == (1, 2)
    assert found.absolute_error == pytest.approx(0.15)
    assert coverage(forecasts, {}) == Coverage(0, 0, None)
