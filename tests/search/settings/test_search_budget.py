"""How many tokens a search may take, as the user or the device says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.settings.bracket_plan import plan_bracket
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.scale import SCALES, search_tokens_of
from search.storage.run_directory import atomic_write
from space.input_error import InputError
from tests.evaluators.distillation.conftest import forget
from tests.search.synthetic import run_config

SCALE, RUNGS = SCALES[0], (12_288, 49_152)


def never() -> float:
    raise AssertionError("nothing has to be measured")


def tokens_of(flags: Flags, rungs: tuple[int, ...] = RUNGS) -> int:
    return search_tokens_of(flags, SCALE, rungs, 10_000, Path("absent"), never)


def test_the_scale_s_unless_something_was_asked() -> None:
    assert tokens_of(Flags()) == SCALE.search_tokens
    assert tokens_of(Flags(search_tokens="2.5M")) == 2_500_000


def test_with_rungs_of_the_user_as_many_begin_as_by_default() -> None:
    asked = (100_000, 200_000, 400_000)
    tokens = tokens_of(Flags(rung_tokens=("100k", "200k", "400k")), asked)
    usual = plan_bracket(SCALE.search_tokens, RUNGS, 10_000)
    found = plan_bracket(tokens, asked, 10_000, every_rung=True)
    assert found.rung_candidates[0] == usual.rung_candidates[0]


@pytest.mark.parametrize(("trials", "distilled"), [(20, 10), (9, 5), (1000, 32)])
def test_half_of_the_trials_of_the_user_are_distilled(trials: int, distilled: int) -> None:
    tokens = tokens_of(Flags(trials=trials))
    found = plan_bracket(tokens, RUNGS, 10_000, trials)
    assert (found.trials, found.rung_candidates[0]) == (trials, distilled)


def test_hours_are_turned_into_tokens_at_the_pace_of_the_device_once(tmp_path: Path) -> None:
    measured = []

    def pace() -> float:
        measured.append(1000.0)
        return measured[-1]

    flags = Flags(search_hours=0.5)
    assert search_tokens_of(flags, SCALE, RUNGS, 10_000, tmp_path, pace) == 1_800_000
    begun = replace(run_config(), search_tokens=1_234_567, search_hours=0.5)
    atomic_write(tmp_path / "config.toml", begun.to_toml())
    assert search_tokens_of(flags, SCALE, RUNGS, 10_000, tmp_path, pace) == 1_234_567
    assert len(measured) == 1, "a run that goes on keeps its tokens"
    assert search_tokens_of(Flags(search_hours=1.0), SCALE, RUNGS, 10_000, tmp_path, pace) == 3_600_000


def test_a_run_of_some_hours_is_planned_by_what_this_machine_does(
    demo_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.metrics.pace._SECONDS", 0.2)
    forget()
    flags = Flags(budget="1M", model=(str(demo_config),), device="cpu", out=tmp_path, search_hours=0.2)
    config = resolve(flags).config
    forget()
    pace = config.search_tokens / (0.2 * 3600)
    assert 100 < pace < 1e6, "tokens a second of a million parameters on some processor"
    assert config.search_hours == 0.2
    assert config.reserve_tokens >= config.search_tokens // 5


def test_hours_are_refused_where_several_processes_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.settings.scale.is_multi_process", lambda: True)
    with pytest.raises(InputError) as caught:
        tokens_of(Flags(search_hours=2.0))
    assert caught.value.remedy == "Say how many with --search-tokens"


def test_two_trials_are_a_search(demo_config: Path, tmp_path: Path) -> None:
    flags = Flags(budget="1M", model=(str(demo_config),), device="cpu", out=tmp_path, trials=2)
    config = resolve(flags).config
    assert (config.trials, config.rung_candidates[0]) == (2, 2)
