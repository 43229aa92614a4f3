"""Hours of the user, and the night that a run takes by default at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evaluators.metrics.pace import Pace
from search.settings.config import RunConfig
from search.settings.flags import Flags
from search.settings.hours import HoursAsked, amounts_given, config_within, with_saved_amounts
from search.settings.resolution import resolve
from search.settings.run_time import foretell
from search.storage.run_directory import atomic_write
from space.input_error import InputError
from tests.search.settings.test_time_budget import PACE, WORK, usual

ASKED, NIGHT = HoursAsked(2.0), HoursAsked(None)


def pace_of(learnt: float) -> Pace:
    return Pace(learnt, 3 * learnt, 0.1, timed=True)


def never(*_: object) -> Pace:
    raise AssertionError("nothing has to be measured")


def within(
    hours: HoursAsked,
    estimate: Callable[[], Pace] = lambda: PACE,
    measure: Callable[[RunConfig], Pace] = lambda config: PACE,
    saved: Path = Path("absent"),
    given: frozenset[str] = frozenset(),
) -> tuple[RunConfig, Pace | None]:
    return config_within(hours, usual(), given, WORK, estimate, measure, saved)


def test_the_default_is_left_alone_where_it_takes_far_less_than_a_night() -> None:
    config, pace = within(NIGHT, lambda: pace_of(1e6), never)
    assert (config, pace) == (usual(), None)


def test_the_default_is_left_alone_where_it_is_measured_to_take_less() -> None:
    assert within(NIGHT, lambda: pace_of(30_000), lambda config: pace_of(60_000)) == (usual(), None)


def test_a_night_is_the_most_by_default() -> None:
    config, pace = within(NIGHT, lambda: pace_of(60_000), lambda config: pace_of(1000))
    assert pace == pace_of(1000)
    assert config.hours == 8.0
    assert foretell(config, WORK, pace_of(1000)).total == pytest.approx(8 * 3600, rel=0.02)
    assert config == within(HoursAsked(8.0), measure=lambda config: pace_of(1000))[0]


def test_a_device_that_is_too_slow_for_a_night_does_the_smallest_search() -> None:
    config, _ = within(NIGHT, measure=lambda config: pace_of(1.0))
    assert config.hours == 8.0
    assert (config.rung_candidates, config.promote) == ((8,), 1)


def test_the_pace_is_measured_with_the_block_and_batch_that_hours_allow() -> None:
    measured: list[RunConfig] = []

    def measure(config: RunConfig) -> Pace:
        measured.append(config)
        return PACE

    config, _ = within(ASKED, measure=measure)
    assert [(one.block, one.batch_blocks) for one in measured] == [(config.block, config.batch_blocks)]


def test_runs_share_the_hours() -> None:
    config, _ = within(HoursAsked(6.0, sharing=3))
    assert config == within(ASKED)[0]


def test_too_few_hours_are_refused_with_those_that_would_do() -> None:
    with pytest.raises(InputError, match="smallest search") as caught:
        within(HoursAsked(0.1))
    enough = float(caught.value.remedy.removeprefix("Allow --hours "))
    config, _ = within(HoursAsked(enough))
    assert config.rung_candidates[0] == 8
    assert "--hours 0.1 was given" in caught.value.values
    with pytest.raises(InputError):
        within(HoursAsked(0.8 * enough))


def test_a_run_that_goes_on_keeps_its_amounts(tmp_path: Path) -> None:
    """However fast the device is by then."""
    begun, _ = within(ASKED)
    saved = tmp_path / "config.toml"
    atomic_write(saved, begun.to_toml())
    assert within(ASKED, never, never, saved) == (begun, None)
    other, _ = within(HoursAsked(3.0), measure=lambda config: pace_of(200), saved=saved)
    assert other.search_tokens > begun.search_tokens


def test_a_run_that_was_begun_without_hours_goes_on_without(tmp_path: Path) -> None:
    saved = tmp_path / "config.toml"
    atomic_write(saved, usual().to_toml())
    assert within(NIGHT, never, never, saved) == (usual(), None)


def test_a_night_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    begun, _ = within(NIGHT)
    saved = tmp_path / "config.toml"
    atomic_write(saved, begun.to_toml())
    assert within(NIGHT, never, never, saved) == (begun, None)
    assert within(HoursAsked(8.0), never, never, saved) == (begun, None)


def test_what_is_named_now_is_not_taken_from_before() -> None:
    before, _ = within(ASKED)
    now = replace(usual(), retrain_tokens=5_000_000)
    found = with_saved_amounts(now, before, frozenset({"retrain_tokens"}))
    assert found.differences(before) == [f"retrain_tokens is 5000000, was {before.retrain_tokens}"]


def test_hours_are_refused_where_several_processes_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.settings.hours.is_multi_process", lambda: True)
    with pytest.raises(InputError) as caught:
        within(ASKED, never, never)
    assert caught.value.remedy == "Say how much with --search-tokens and --retrain-tokens"
    assert within(NIGHT, never, never) == (usual(), None)


def test_flags_name_amounts() -> None:
    assert amounts_given(Flags(hours=2.0)) == frozenset()
    flags = Flags(rung_tokens=("8k",), retrain_baselines=False, promote=1)
    assert amounts_given(flags) == {"rung_tokens", "retrain_baselines", "promote"}


def test_a_run_of_some_hours_is_planned_by_what_this_machine_does(
    demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def measured(*arguments: object) -> Pace:
        asked.append(arguments)
        return pace_of(5000)

    monkeypatch.setattr("search.settings.resolution.pace_of", measured)
    flags = Flags(budget="1M", model=(str(demo_config),), device="cpu", out=tmp_path, hours=0.05)
    resolved = resolve(flags)
    config = resolved.config
    assert config.hours == 0.05
    assert resolved.pace == pace_of(5000)
    assert len(asked) == 1
    assert (config.basis == "auto") == (resolved.turned is not None)
    assert resolved.turned is None or resolved.turned.config == config
    assert foretell(config, resolved.work, pace_of(5000)).total <= 180
