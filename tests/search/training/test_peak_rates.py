"""Which peak learning rate a training has."""

from __future__ import annotations

from typing import Any

import pytest

from evaluators.distillation.schedule import ScheduleShape, peak_rate
from search.settings.config import RunConfig
from search.training.peak_rates import BY_RULE, PeakRates
from search.training.training import Trainer
from tests.search.synthetic import run_config


def config(schedule: str = "cosine", **fields: Any) -> RunConfig:
    """A run with steps of 2,048 tokens."""
    return run_config(**{"schedule": schedule, "batch_blocks": 16, "block": 128, **fields})


def test_without_a_test_the_rule_decides() -> None:
    for steps in (1, 4, 16, 1000):
        rates = [BY_RULE.of, BY_RULE.from_random_weights]
        assert {rate(config(), 10**8, steps * 2048) for rate in rates} == {peak_rate(10**8, steps)}
    assert BY_RULE.of(config(), 10**8, 1) == peak_rate(10**8, 1), "a training has a step"


def test_small_steps_have_a_lower_rate() -> None:
    small = config(batch_blocks=4)
    assert (
        BY_RULE.of(small, 10**8, 512 * 4) == peak_rate(10**8, 4, 512) == pytest.approx(peak_rate(10**8) / 4)
    )


def test_a_found_factor_holds_for_every_size_and_length_but_not_from_random_weights() -> None:
    rates = PeakRates(factor=0.25)
    for parameters in (10**6, 10**8):
        for tokens in (8192, 10**6):
            rule = BY_RULE.of(config(), parameters, tokens)
            assert rates.of(config(), parameters, tokens) == pytest.approx(rule / 4)
            assert rates.from_random_weights(config(), parameters, tokens) == rule


def test_a_given_rate_is_that_of_every_training() -> None:
    rates, run = PeakRates(given=1e-3), config()
    assert (
        rates.of(run, 10**6, 1) == rates.of(run, 10**9, 10**9) == rates.from_random_weights(run, 7, 1) == 1e-3
    )


def test_under_wsd_trainings_of_all_lengths_have_the_same_rate() -> None:
    run = config("wsd")
    assert {BY_RULE.of(run, 10**8, tokens) for tokens in (1, 8192, 10**6)} == {peak_rate(10**8)}


def test_a_training_shorter_than_rung_1_warms_up_in_time() -> None:
    """Under WSD, where all that resume one another share the warm-up of rung 1."""
    step = 256
    config = run_config(schedule="wsd", rung_tokens=(400 * step,), batch_blocks=2, block=128)

    class Blocks:
        shape = (4, 128)

    trainer = Trainer(config, None, Blocks(), None)  # type: ignore[arg-type]
    schedules = {steps: trainer._schedule(steps * step, 1e-3) for steps in (32, 400, 1600)}
    assert {steps: one.warm_up for steps, one in schedules.items()} == {32: 3, 400: 40, 1600: 40}
    assert max(schedules[32].rate(n) for n in range(32)) == pytest.approx(1e-3)
    assert all(one.shape is ScheduleShape.WSD for one in schedules.values())
