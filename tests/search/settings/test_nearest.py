"""Of several teachers at hand the smallest above the budget is cut, and the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PretrainedConfig

from search.planning.messages import opening_line
from search.planning.plan import plan
from search.settings.flags import Flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.settings.teachers import AvailableTeacher, Training, TrainingPhase, smallest_above
from search.storage.run_directory import RunDirectory
from space.counting.budget import Budget
from space.input_error import InputError
from tests.search.settings.test_phases import changed


def at_hand(amount: int) -> AvailableTeacher:
    """A teacher that is known by its size alone."""
    return AvailableTeacher(Training((TrainingPhase(f"of-{amount}", None),), PretrainedConfig()), amount)


@given(st.lists(st.integers(1, 1000), min_size=1, unique=True), st.integers(1, 1000))
def test_it_is_the_smallest_above_the_band(amounts: list[int], budget: int) -> None:
    above = [amount for amount in amounts if amount > budget * 1.02]
    assume(above)
    assert smallest_above([at_hand(amount) for amount in amounts], Budget(budget, 0.02)).amount == min(above)


def test_of_equal_ones_it_is_the_first() -> None:
    teachers = [at_hand(10), at_hand(10)]
    assert smallest_above(teachers, Budget(5, 0.02)) is teachers[0]


def test_a_teacher_within_the_band_is_not_above_it() -> None:
    """5% above 8.19B is 8.6B: an 8.27B is no teacher of it, a 15B is."""
    teachers = [at_hand(8_270_000_000), at_hand(15_630_000_000)]
    assert smallest_above(teachers, Budget(8_190_000_000, 0.05)) is teachers[1]
    assert smallest_above(teachers, Budget(4_190_000_000, 0.05)) is teachers[0]


def test_a_budget_above_all_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        smallest_above([at_hand(2_000_000), at_hand(4_050_000)], Budget(4_000_000, 0.02))
    assert str(caught.value) == (
        "A budget has to lie below one of the teachers at hand; 4,000,000 parameters ±2% was asked, and "
        "of-4050000 (4.05M), of-2000000 (2M) were named. Name a larger model with --model, or ask for less "
        "with --budget."
    )


@pytest.fixture(scope="module")
def shelf(demo_config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Configs of three sizes: two checkpoints of 1.84M parameters, one of 2.62M, one of 1.05M."""
    folder = tmp_path_factory.mktemp("shelf")
    return {
        "early": str(changed(demo_config, folder / "early", rope_theta=500.0)),
        "late": str(changed(demo_config, folder / "late")),
        "large": str(changed(demo_config, folder / "large", num_hidden_layers=12)),
        "small": str(changed(demo_config, folder / "small", num_hidden_layers=4)),
    }


def resolved(shelf: dict[str, str], *names: str, **others: Any) -> Resolved:
    flags = {"budget": "1.3M", "device": "cpu", "basis": "coordinate", **others}
    return resolve(Flags(model=tuple(shelf[name] for name in names), **flags))


@pytest.mark.parametrize(
    "order",
    [
        ("early", "late", "large", "small"),
        ("large", "early", "small", "late"),
        ("small", "large", "early", "late"),
    ],
)
def test_the_nearest_groups_last_checkpoint_is_the_teacher(
    order: tuple[str, ...], shelf: dict[str, str]
) -> None:
    config = resolved(shelf, *order).config
    assert config.teacher == shelf["late"]
    assert config.phases == (shelf["early"], shelf["late"])
    assert config.passed_over == tuple(shelf[name] for name in order if name in ("large", "small"))
    assert config.name == "late-1.3M"


def test_the_choice_is_said(shelf: dict[str, str], tmp_path: Path) -> None:
    found = resolved(shelf, "large", "late", "small")
    others = f"{shelf['large']} (2.62M), {shelf['small']} (1.05M)"
    said = opening_line(found)
    assert said.startswith(
        f"{shelf['late']}: 1,837,184 parameters, the nearest above the budget; passed over: {others}; "
    )
    assert f"passed over     {others}\n" in str(plan(found, RunDirectory(tmp_path / "run")))
    alone = resolved(shelf, "late")
    assert "passed over" not in opening_line(alone) + str(plan(alone, RunDirectory(tmp_path / "run")))
    assert alone.config.passed_over == ()


def test_the_budgets_own_measure_decides(shelf: dict[str, str]) -> None:
    """A KV cache grows with the layers: 8 × 2 × 4 × 16 numbers of 4 bytes each a token are 4,096 bytes."""
    for budget, teacher in (("3kB", "late"), ("4.1kB", "large")):
        found = resolved(shelf, "small", "large", "late", budget=budget, budget_of="kv-cache", tolerance=0.05)
        assert found.config.teacher == shelf[teacher]


def test_a_share_needs_one_teacher(shelf: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        resolved(shelf, "large", "late", budget="60%")
    assert str(caught.value) == (
        "A percentage is a share of one teacher; 60% was asked, and models of 2 architectures were named. "
        "Write the budget as a number, or name one --model."
    )
    assert resolved(shelf, "early", "late", budget="60%").config.teacher == shelf["late"]
