"""How ``--rate`` is read, what finding a rate costs, and where it pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.distillation.rate_finding import EXPECTED_TRAININGS, STEPS
from evaluators.metrics.pace import Pace
from search.settings.command_line import read_flags
from search.settings.flags import Flags
from search.settings.rates import finding_tokens, given_rate, rate_in_words, rate_of, tokens_each
from search.settings.resolution import resolve
from search.settings.run_time import Work, foretell, trained_tokens
from space.input_error import InputError
from tests.search.synthetic import run_config

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "value", "rate"),
    [("auto", "auto", None), ("rule", "rule", None), ("3e-4", "0.0003", 3e-4), ("0.0003", "0.0003", 3e-4)],
)
def test_a_rate_is_a_word_or_a_number(text: str, value: str, rate: float | None) -> None:
    assert rate_of(text) == value
    assert given_rate(run_config(rate=value)) == rate


@pytest.mark.parametrize("text", ["", "fast", "0", "-1e-3", "1", "nan", "inf", "3e-4x"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--rate takes auto, rule, or a learning rate between 0 and 1"):
        read_flags(["--budget", "1M", "--rate", text])


@given(st.integers(1, 10**7), st.integers(1, 64), st.sampled_from([128, 512, 4096]))
def test_a_test_takes_whole_steps_and_no_more_than_rung_1(first: int, blocks: int, block: int) -> None:
    config = run_config(rung_tokens=(first, 4 * first), batch_blocks=blocks, block=block)
    step = blocks * block
    assert tokens_each(config) % step == 0
    assert step <= tokens_each(config) <= max(step, min(STEPS * step, first + step // 2))


def test_finding_is_left_where_it_takes_more_than_a_twentieth() -> None:
    config = run_config(rate="auto")
    tokens = EXPECTED_TRAININGS * tokens_each(config)
    assert finding_tokens(config, 1, 20 * tokens) == tokens
    assert finding_tokens(config, 1, 20 * tokens - 20) == 0
    assert finding_tokens(config, 2, 20 * tokens) == 0
    assert finding_tokens(replace(config, rate="rule"), 1, 10**9) == 0
    assert finding_tokens(replace(config, rate="0.001"), 1, 10**9) == 0


def test_it_is_said_how_the_rate_is_set() -> None:
    config = run_config(rate="auto")
    assert rate_in_words(config, 2, 10**9) == (
        "its peak is found by about 4 trainings of 1,024 tokens each, in each of two bases"
    )
    assert rate_in_words(config, 1, 50_000) == (
        "its peak is the rule's for the student's size: to find it would take 4,096 tokens, more than a "
        "twentieth of the 50,000 of all trainings"
    )
    assert rate_in_words(run_config(rate="rule"), 2, 10**9) == "its peak is the rule's for the student's size"
    assert (
        rate_in_words(run_config(rate="0.001"), 2, 1) == "0.001 at its peak, in every training of a student"
    )


def test_a_run_of_the_defaults_can_find_its_rate_and_the_demo_cannot(demo_config: Path) -> None:
    common: dict[str, Any] = {"model": (str(demo_config),), "device": "cpu"}
    assert resolve(Flags(budget="1M", **common)).config.rate == "rule"
    usual = resolve(Flags(budget="1M", rate="auto", **common))
    assert usual.finding_tokens == 2 * EXPECTED_TRAININGS * 12 * 1024
    assert usual.rate_in_words.endswith("in each of two bases")
    demo = read_flags(["--preset", str(ROOT / "studies" / "presets" / "demo.toml")])
    assert resolve(replace(demo, rate="auto", **common)).finding_tokens == 0


def test_the_time_of_finding_is_foretold() -> None:
    work = Work(layer_passes=2.0, larger=1.5, architectures=50, hand_made=3, tried=6)
    pace = Pace(100.0, 300.0, 1.5, timed=True)
    rule = run_config(basis="auto", rung_tokens=(1024, 4096), rung_candidates=(200, 50), retrain_tokens=10**6)
    found = replace(rule, rate="auto")
    tokens = 2 * EXPECTED_TRAININGS * 1024
    assert finding_tokens(found, work.bases(found), trained_tokens(found, work)) == tokens
    more = foretell(found, work, pace).ranking - foretell(rule, work, pace).ranking
    validation = found.validation_blocks * found.block / 300.0
    assert more == pytest.approx(tokens / 100.0 + 2 * EXPECTED_TRAININGS * validation)
