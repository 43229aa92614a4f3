"""The plan of a nested search, and what does not go with it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.distillation.optimizers import OptimizerName
from search.planning.plan import plan
from search.settings.bracket_plan import LARGEST_POOL, SMALLEST_POOL, STAGES, plan_nested
from search.settings.flag_rules import check_nested
from search.settings.flags import Flags
from search.settings.ledger import memory_of
from search.settings.placement import Placement
from search.storage.run_directory import RunDirectory
from space.input_error import InputError
from tests.search.planning.test_plan import resolved_once
from tests.search.synthetic import run_config


@given(st.integers(STAGES, 10**12), st.integers(1, 10**6), st.none() | st.integers(1, 10**4))
def test_pools_are_halved_and_tokens_add_up(tokens: int, architectures: int, trials: int | None) -> None:
    plan = plan_nested(tokens, architectures, trials)
    assert plan.rung_tokens[-1] == tokens
    assert list(plan.rung_tokens) == sorted(set(plan.rung_tokens))
    assert plan.rung_candidates[0] == min(LARGEST_POOL, architectures, trials or architectures)
    for before, after in pairwise(plan.rung_candidates):
        assert after == min(before, max(SMALLEST_POOL, -(-before // 2)))
    assert plan.rung_candidates[0] <= plan.trials <= architectures


def test_the_tokens_of_a_search_are_those_of_the_shared_weights() -> None:
    config = run_config(
        search="nested", rung_tokens=(100, 200, 300, 400), rung_candidates=(48, 24, 12, 6), search_tokens=400
    )
    assert config.spent_tokens == 400
    assert config.reserve_tokens == 0
    assert config.trial_tokens == 400 // 64


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rung_tokens": ("1k",)}, "--rung-tokens gives each its own training"),
        ({"schedule": "wsd"}, "--schedule wsd"),
        ({"states": ("late",)}, "--states late compares states of one width"),
    ],
)
def test_what_belongs_to_trainings_alone_is_refused(changes: dict[str, object], named: str) -> None:
    check_nested(Flags(budget="1M", **changes))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"A nested search trains all candidates in shared weights; {named}"):
        check_nested(Flags(budget="1M", search="nested", **changes))  # type: ignore[arg-type]


def test_several_processes_for_one_training_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match="2 processes were started to train each student together"):
        check_nested(Flags(budget="1M", search="nested"))


def test_the_memory_of_its_training_is_that_of_training_the_teacher(
    demo_config: Path, tmp_path: Path
) -> None:
    needs = {}
    for search in ("rungs", "nested"):
        resolved = resolved_once(Flags(budget="1M", model=(str(demo_config),), device="cpu", search=search))
        stages = memory_of(resolved, tmp_path).of(Placement(), OptimizerName.ADAMW)
        needs[search] = {one.stage: {**one.device, **one.host} for one in stages}
        teacher, most = resolved.teacher_parameters, int(resolved.space.parameters.max())
    assert needs["nested"]["distillation"]["weights"] == 4 * teacher
    assert needs["nested"]["distillation"]["optimiser"] == 8 * teacher
    assert needs["rungs"]["distillation"]["weights"] <= 4 * most < 4 * teacher
    assert needs["nested"]["retraining"]["weights"] == needs["rungs"]["retraining"]["weights"]


def test_the_plan_says_what_is_trained_together(demo_config: Path, tmp_path: Path) -> None:
    asked = Flags(budget="1M", model=(str(demo_config),), device="cpu", search="nested", search_tokens="400k")
    text = str(plan(resolved_once(asked), RunDirectory(tmp_path)))
    assert re.search(r"^rung 1 +48 candidates, after 100,000 of all$", text, re.MULTILINE)
    assert re.search(r"^rung 4 +6 candidates, after 400,000 of all$", text, re.MULTILINE)
