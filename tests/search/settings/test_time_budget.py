"""What hours buy: the foretold time fits them, more hours buy no less, and a search stays one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.metrics.pace import Pace
from search.settings.bracket_plan import plan_bracket, rungs_up_to
from search.settings.config import RunConfig
from search.settings.run_time import (
    TaskWork,
    Work,
    foretell,
    ranking_seconds,
    retraining_tokens,
    retrainings,
    validation_seconds,
)
from search.settings.scale import SCALES, Scale
from search.settings.time_budget import TimeBudget
from tests.search.synthetic import run_config

#: Of the teacher of 135 million parameters at 60%.
WORK = Work(layer_passes=15.5, larger=1.66, architectures=44, hand_made=3, tried=6)
PACE = Pace(100.0, 300.0, 1.5, timed=True)


def usual(scale: Scale = SCALES[2], **fields: Any) -> RunConfig:
    """A configuration with the default amounts of a scale."""
    rungs = rungs_up_to(scale.first_rung_tokens, scale.retrain_tokens)
    bracket = plan_bracket(scale.search_tokens, rungs, WORK.architectures)
    config = replace(
        run_config(),
        basis="auto",
        rate="auto",
        block=scale.block,
        batch_blocks=scale.batch_blocks,
        calibration_blocks=scale.calibration_blocks,
        validation_blocks=scale.validation_blocks,
        distillation_blocks=-(-scale.retrain_tokens // scale.block),
        trials=bracket.trials,
        rung_tokens=bracket.rung_tokens,
        rung_candidates=bracket.rung_candidates,
        search_tokens=scale.search_tokens,
        retrain_tokens=scale.retrain_tokens,
        promote=scale.promote,
    )
    return replace(config, **fields)


def budget(scale: Scale = SCALES[2], pace: Pace = PACE, given: tuple[str, ...] = ()) -> TimeBudget:
    return TimeBudget(usual(scale), frozenset(given), WORK, pace)


def trained(config: RunConfig) -> int:
    return config.search_tokens + retraining_tokens(config, WORK.hand_made)


SCALE, LEARNT = st.sampled_from(SCALES), st.floats(50.0, 1e5)
HOURS = st.floats(0.05, 200.0)


@settings(max_examples=40)
@given(SCALE, LEARNT, st.floats(2.0, 4.0), HOURS)
def test_the_foretold_time_fits_and_is_used(scale: Scale, learnt: float, faster: float, hours: float) -> None:
    found = budget(scale, Pace(learnt, faster * learnt, 0.1, timed=True))
    config = found.within(hours * 3600)
    if config is None:
        assert found.seconds(found.smallest()) > hours * 3600
        return
    seconds = found.seconds(config)
    assert seconds <= hours * 3600
    at_their_most = trained(config) >= 99 * trained(found.usual)
    assert at_their_most or seconds >= 0.8 * hours * 3600


@settings(max_examples=40)
@given(SCALE, LEARNT, HOURS, st.floats(1.1, 10.0))
def test_more_hours_buy_no_less(scale: Scale, learnt: float, hours: float, more: float) -> None:
    found = budget(scale, Pace(learnt, 3 * learnt, 0.1, timed=True))
    few, many = (found.within(one * 3600) for one in (hours, more * hours))
    if few is None:
        return
    assert many is not None
    assert many.search_tokens >= few.search_tokens
    assert trained(many) >= 0.99 * trained(few)


@settings(max_examples=40)
@given(SCALE, LEARNT, HOURS)
def test_it_stays_a_search(scale: Scale, learnt: float, hours: float) -> None:
    found = budget(scale, Pace(learnt, 3 * learnt, 0.1, timed=True))
    config, most = found.within(hours * 3600), usual(scale)
    if config is None:
        return
    assert config.rung_candidates[0] >= 8
    assert config.rung_tokens[0] >= 8192
    assert 1 <= config.promote <= most.promote
    assert config.retrain_tokens >= 4 * config.rung_tokens[-1]
    assert config.trials >= config.rung_candidates[0]
    assert 128 <= config.block <= most.block
    step = config.block * config.batch_blocks
    assert step <= most.block * most.batch_blocks
    assert step in (most.block * most.batch_blocks, 128) or config.rung_tokens[0] >= 32 * step
    for field in ("calibration_blocks", "validation_blocks"):
        tokens, whole = getattr(config, field) * config.block, getattr(most, field) * most.block
        assert min(whole, 8192) - config.block < tokens <= whole
    assert config.distillation_blocks * config.block >= config.retrain_tokens


@pytest.mark.parametrize("hours", [2.0, 8.0])
def test_two_hours_and_a_night_of_a_teacher_of_135_million_parameters(hours: float) -> None:
    found = budget()
    config = found.within(hours * 3600)
    assert config is not None
    total = found.seconds(config)
    assert total == pytest.approx(hours * 3600, rel=0.01)
    assert ranking_seconds(config, WORK, PACE) < 0.2 * total
    assert validation_seconds(config, WORK, PACE) < 0.2 * total
    assert config.basis == {2.0: "coordinate", 8.0: "auto"}[hours], "six more students are too many for two"
    time = foretell(config, WORK, PACE)
    assert 0.25 < (time.search + time.reserve) / total < 0.6
    assert 0.25 < time.retraining / total < 0.6


def test_the_default_amounts_come_out_of_their_own_time() -> None:
    found = budget()
    config = found.within(found.seconds(found.usual))
    assert config is not None
    assert trained(config) == pytest.approx(trained(found.usual), rel=0.01)
    fields = ("block", "promote", "rung_candidates", "basis", "calibration_blocks", "validation_blocks")
    assert [getattr(config, field) for field in fields] == [getattr(found.usual, field) for field in fields]


@pytest.mark.parametrize(
    "given",
    [
        ("search_tokens",),
        ("retrain_tokens",),
        ("search_tokens", "retrain_tokens"),
        ("rung_tokens",),
        ("trials",),
        ("promote",),
    ],
)
def test_what_is_named_stays(given: tuple[str, ...]) -> None:
    found = budget(pace=Pace(1e5, 3e5, 0.1, timed=True), given=given)
    config = found.within(7200)
    assert config is not None
    assert found.seconds(config) <= 7200
    for name in given:
        assert getattr(config, name) == getattr(found.usual, name)


def test_what_is_named_may_be_too_much() -> None:
    assert budget(given=("search_tokens",)).within(7200) is None


def test_the_time_of_scoring_by_tasks_is_foretold() -> None:
    config = usual()
    without = foretell(config, WORK, PACE)
    time = foretell(config, replace(WORK, tasks=TaskWork(candidate=6000, model=90_000)), PACE)
    scored = config.trials + sum(config.rung_candidates)
    models = sum(retrainings(config, WORK.hand_made))
    assert models > 1
    each, whole = 6000 / PACE.read, 90_000 / PACE.read
    assert time.ranking - without.ranking == pytest.approx(WORK.larger * each)
    assert time.search - without.search == pytest.approx(scored * each)
    later = models * (each + whole) + WORK.larger * whole
    assert time.retraining - without.retraining == pytest.approx(later)
    assert time.reserve == without.reserve
