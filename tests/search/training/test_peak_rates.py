"""Which peak learning rate a training has."""

from __future__ import annotations

import pytest

from evaluators.distillation.schedule import ScheduleShape, peak_rate
from search.training.peak_rates import BY_RULE, PeakRates, steps_for_rate
from search.training.training import Trainer
from tests.search.synthetic import run_config


def test_without_a_test_the_rule_decides() -> None:
    assert BY_RULE.of(10**8, 1000) == BY_RULE.from_random_weights(10**8, 1000) == peak_rate(10**8)
    assert BY_RULE.of(10**8, 4) == BY_RULE.from_random_weights(10**8, 4) == peak_rate(10**8) / 2


def test_a_found_factor_holds_for_every_size_and_length_but_not_from_random_weights() -> None:
    rates = PeakRates(factor=0.25)
    for parameters in (10**6, 10**8):
        for steps in (4, 16, 1000, None):
            rule = peak_rate(parameters, steps)
            assert rates.of(parameters, steps) == pytest.approx(rule / 4)
            assert rates.from_random_weights(parameters, steps) == rule


def test_a_given_rate_is_that_of_every_training() -> None:
    rates = PeakRates(given=1e-3)
    assert rates.of(10**6, 1) == rates.of(10**9, 10**9) == rates.from_random_weights(7, 1) == 1e-3


def test_under_wsd_trainings_of_all_lengths_have_the_same_rate() -> None:
    step = 256
    cosine = run_config(schedule="cosine", batch_blocks=2, block=128)
    assert [steps_for_rate(cosine, steps * step) for steps in (1, 4, 100)] == [1, 4, 100]
    assert steps_for_rate(cosine, 1) == 1
    wsd = run_config(schedule="wsd", batch_blocks=2, block=128)
    assert [steps_for_rate(wsd, steps * step) for steps in (1, 4, 100)] == [None] * 3


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
