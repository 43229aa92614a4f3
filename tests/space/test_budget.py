from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from space.budget import Budget, BudgetText, spoken
from space.input_error import InputError

UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("4B", 4_000_000_000),
        ("350M", 350_000_000),
        ("800k", 800_000),
        ("1200000", 1_200_000),
        ("8.19B", 8_190_000_000),
        (".5m", 500_000),
        (" 1.5 b ", 1_500_000_000),
        ("60%", 600),
        ("33.3 %", 333),
        ("100%", 1000),
    ],
)
def test_a_budget_is_a_number_or_a_share(text: str, parameters: int) -> None:
    assert BudgetText.parse(text).parameters(teacher_parameters=1000) == parameters


@given(st.integers(1, 10**9), st.sampled_from(sorted(UNITS.items())), st.booleans(), st.booleans())
def test_every_number_of_parameters_can_be_written(
    thousandths: int, unit: tuple[str, int], small: bool, spaced: bool
) -> None:
    name, size = unit
    exact = thousandths * size / 1000
    text = f"{thousandths // 1000}.{thousandths % 1000:03d}{' ' * spaced}{name.lower() if small else name}"
    read = BudgetText.parse(text).parameters(1)
    assert abs(read - exact) <= max(0.5, exact * 1e-15)


@given(st.integers(1, 2**53))
def test_a_plain_number_is_itself(parameters: int) -> None:
    assert BudgetText.parse(str(parameters)).parameters(1) == parameters


@given(st.integers(1, 10**14))
def test_what_is_spoken_can_be_typed(parameters: int) -> None:
    """Three digits are kept, so that nothing is off by more than half of the third."""
    again = BudgetText.parse(spoken(parameters)).parameters(1)
    assert abs(again - parameters) <= 0.005 * parameters
    assert len(spoken(parameters)) <= 5
    assert spoken(again) == spoken(parameters)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (1_050_000, "1.05M"),
        (350_000_000, "350M"),
        (8_190_735_360, "8.19B"),
        (2.5e12, "2.5T"),
    ],
)
def test_people_say_three_digits(parameters: float, text: str) -> None:
    assert spoken(parameters) == text


RULE = "A budget is a positive number of parameters (units k, M, B, T) or a percentage"
REMEDY = "Write it like 4B, 350M, 800k, 1200000 or 60%."


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", "'' is neither"),
        ("big", "'big' is neither"),
        ("-1B", "'-1B' is neither"),
        ("1e6", "'1e6' is neither"),
        ("1.2.3", "'1.2.3' is neither"),
        ("4B 60%", "'4B 60%' is neither"),
        ("nan", "'nan' is neither"),
        ("inf", "'inf' is neither"),
        ("4X", "'4X' has the unknown unit 'X'"),
        ("4GB", "'4GB' has the unknown unit 'GB'"),
        ("0", "'0' is not positive"),
        ("0.0M", "'0.0M' is not positive"),
        ("0%", "'0%' is not positive"),
        ("9" * 400, f"'{'9' * 400}' is too large"),
        ("9" * 308 + "T", f"'{'9' * 308}T' is too large"),
    ],
)
def test_anything_else_is_refused(text: str, values: str) -> None:
    with pytest.raises(InputError) as refusal:
        BudgetText.parse(text)
    assert str(refusal.value) == f"{RULE}; {values}. {REMEDY}"


@given(st.text(max_size=8))
def test_no_text_is_a_surprise(text: str) -> None:
    with suppress(InputError):
        assert BudgetText.parse(text).parameters(10**9) >= 0


def test_the_band_is_a_share_of_the_budget_on_both_sides() -> None:
    budget = Budget(1000, 0.02)
    assert (budget.lowest, budget.highest) == (980, 1020)


@pytest.mark.parametrize(("tolerance", "text"), [(0.02, "2"), (0.004, "0.4"), (1e-4, "0.01"), (0.25, "25")])
def test_it_says_its_tolerance_as_it_is(tolerance: float, text: str) -> None:
    assert str(Budget(1_200_000, tolerance)) == f"1,200,000 ±{text}%"
