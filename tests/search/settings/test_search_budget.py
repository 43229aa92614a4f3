"""How many tokens a search may take, as the user or the teacher's size says."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.settings.bracket_plan import plan_bracket
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.scale import SCALES, search_tokens_of

SCALE, RUNGS = SCALES[0], (12_288, 49_152)


def tokens_of(flags: Flags, rungs: tuple[int, ...] = RUNGS) -> int:
    return search_tokens_of(flags, SCALE, rungs, 10_000)


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


def test_two_trials_are_a_search(demo_config: Path, tmp_path: Path) -> None:
    flags = Flags(budget="1M", model=(str(demo_config),), device="cpu", out=tmp_path, trials=2)
    config = resolve(flags).config
    assert (config.trials, config.rung_candidates[0]) == (2, 2)
