"""When the sizes of students are multiples for deployment, and when they go in small steps."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from search.settings.flags import Flags
from search.settings.multiples import enumerated, in_words, multiples_of
from space.axes.axis_map import AxisMap
from space.counting.budget import Budget, Measure
from space.discovery.discovery import discover
from space.input_error import InputError
from tests.space.models import LLAMA_8B, SMALL


@pytest.fixture(scope="module")
def llama() -> AxisMap:
    return discover(LLAMA_8B).axis_map


def found(axis_map: AxisMap, amount: float, tolerance: float = 0.02, **flags: Any) -> tuple[str, int]:
    """The name of the multiples, and the number of architectures."""
    budget = Budget(int(amount), tolerance, Measure("total"))
    mapped, space = enumerated(Flags(budget="it", **flags), axis_map, budget, amount)
    return multiples_of(mapped), len(space)


def test_from_a_billion_on_they_are_for_deployment(llama: AxisMap) -> None:
    assert found(llama, 4.5e9) == ("deploy", 245)
    assert found(llama, 4.5e9, multiples="fine") == ("fine", 459)


def test_where_few_are_near_the_default_goes_in_small_steps(llama: AxisMap) -> None:
    few: dict[str, Any] = {"tolerance": 0.002, "keep": ("layers",)}
    name, count = found(llama, 4.5e9, **few)
    asked, fewer = found(llama, 4.5e9, multiples="deploy", **few)
    assert (name, asked) == ("fine", "deploy")
    assert fewer < 50
    assert fewer < count


def test_small_students_have_them_if_asked_and_possible(caplog: pytest.LogCaptureFixture) -> None:
    small = discover(SMALL).axis_map
    assert found(small, 12_000, 0.1)[0] == "fine"
    with caplog.at_level(logging.INFO):
        assert found(small, 12_000, 0.1, multiples="deploy")[0] == "fine"
    assert "in sizes for deployment: they go in small steps" in caplog.text


def test_what_is_wrong_beside_is_told(llama: AxisMap) -> None:
    with pytest.raises(InputError, match="Sizes have to lie within the teacher's"):
        found(llama, 4.5e9, sizes=("hidden=9999",))


def test_a_plan_names_them(llama: AxisMap) -> None:
    mapped, _ = enumerated(Flags(budget="it"), llama, Budget(int(4.5e9), 0.02, Measure("total")), 4.5e9)
    assert in_words(mapped).startswith(
        "hidden of 256, mlp of 256, heads of 8, for programs that serve models"
    )
