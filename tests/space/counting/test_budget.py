from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from space.counting.budget import Budget, BudgetText, Measure, format_amount
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
    assert BudgetText.parse(text).of(1000) == parameters


@given(st.integers(1, 10**9), st.sampled_from(sorted(UNITS.items())), st.booleans(), st.booleans())
def test_every_number_of_parameters_can_be_written(
    thousandths: int, unit: tuple[str, int], small: bool, spaced: bool
) -> None:
    name, size = unit
    exact = thousandths * size / 1000
    text = f"{thousandths // 1000}.{thousandths % 1000:03d}{' ' * spaced}{name.lower() if small else name}"
    read = BudgetText.parse(text).of(1)
    assert abs(read - exact) <= max(0.5, exact * 1e-15)


@given(st.integers(1, 2**53))
def test_a_plain_number_is_itself(parameters: int) -> None:
    assert BudgetText.parse(str(parameters)).of(1) == parameters


@given(st.integers(1, 10**14))
def test_what_is_spoken_can_be_typed(parameters: int) -> None:
    """Three digits are kept, so that nothing is off by more than half of the third."""
    again = BudgetText.parse(format_amount(parameters)).of(1)
    assert abs(again - parameters) <= 0.005 * parameters
    assert len(format_amount(parameters)) <= 5
    assert format_amount(again) == format_amount(parameters)


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
    assert format_amount(parameters) == text


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
        assert BudgetText.parse(text).of(10**9) >= 0


def test_the_band_is_a_share_of_the_budget_on_both_sides() -> None:
    budget = Budget(1000, 0.02)
    assert (budget.lowest, budget.highest) == (980, 1020)


@pytest.mark.parametrize(("tolerance", "text"), [(0.02, "2"), (0.004, "0.4"), (1e-4, "0.01"), (0.25, "25")])
def test_it_says_its_tolerance_as_it_is(tolerance: float, text: str) -> None:
    assert str(Budget(1_200_000, tolerance)) == f"1,200,000 parameters ±{text}%"


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        (Measure.TOTAL, "64,000 parameters ±2%"),
        (Measure.NON_EMBEDDING, "64,000 non-embedding parameters ±2%"),
        (Measure.ACTIVE, "64,000 active parameters ±2%"),
        (Measure.WEIGHTS, "64,000 bytes of weights ±2%"),
        (Measure.KV_CACHE, "64,000 bytes of KV cache a token ±2%"),
    ],
)
def test_it_says_what_it_measures(measure: Measure, text: str) -> None:
    assert str(Budget(64_000, 0.02, measure)) == text


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8GB", 8 * 10**9),
        ("500 mb", 5 * 10**8),
        ("64kB", 64_000),
        ("64KiB", 65_536),
        ("16GiB", 16 * 2**30),
        ("1.5TiB", 3 * 2**39),
        ("2MiB", 2**21),
        ("1TB", 10**12),
        ("65536", 65_536),
        ("50%", 500),
    ],
)
@pytest.mark.parametrize("measure", [Measure.WEIGHTS, Measure.KV_CACHE])
def test_memory_is_typed_in_bytes(measure: Measure, text: str, amount: int) -> None:
    assert BudgetText.parse(text, measure).of(1000) == amount


@given(st.integers(1, 10**14), st.sampled_from(list(Measure)))
def test_what_is_spoken_of_any_measure_can_be_typed(amount: int, measure: Measure) -> None:
    again = BudgetText.parse(format_amount(amount, measure), measure).of(1)
    assert abs(again - amount) <= 0.005 * amount


@pytest.mark.parametrize(("amount", "text"), [(131_072, "131kB"), (16_060_522_496, "16.1GB"), (999, "999")])
def test_people_say_bytes(amount: int, text: str) -> None:
    assert format_amount(amount, Measure.KV_CACHE) == text


@pytest.mark.parametrize(
    ("text", "measure", "message"),
    [
        (
            "8GB",
            Measure.ACTIVE,
            f"{RULE}; '8GB' is in bytes. {REMEDY.removesuffix('.')}, or say with --budget-of that it is one "
            "of weights or kv-cache.",
        ),
        (
            "4B",
            Measure.WEIGHTS,
            "A budget of weights is a positive number of bytes (units kB, MB, GB, TB, KiB, MiB, GiB, TiB) or "
            "a percentage; '4B' is in parameters. Write it like 8GB, 500MB, 16GiB, 64kB or 60%, or say with "
            "--budget-of that it is one of total, non-embedding or active.",
        ),
        (
            "64kb/s",
            Measure.KV_CACHE,
            "A budget of kv-cache is a positive number of bytes (units kB, MB, GB, TB, KiB, MiB, GiB, TiB) "
            "or a percentage; '64kb/s' is neither. Write it like 8GB, 500MB, 16GiB, 64kB or 60%.",
        ),
    ],
)
def test_a_unit_of_something_else_is_refused(text: str, measure: Measure, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        BudgetText.parse(text, measure)
    assert str(refusal.value) == message
