"""Numbers read as a person writes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.terminal import format as words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (0, "0"),
        (999, "999"),
        (999.4, "999"),
        (1000, "1.00 k"),
        (98_304, "98.3 k"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),
        (1_327_984, "1.33 M"),
        (8_190_735_360, "8.19 B"),
        (94 * 10**12, "94.0 T"),
    ],
)
def test_count(value: float | None, text: str) -> None:
    assert words.count(value).replace(words.NO_BREAK_SPACE, " ") == text


@given(st.floats(1, 1e15))
def test_count_is_within_half_a_percent(value: float) -> None:
    number, _, suffix = words.count(value).partition(words.NO_BREAK_SPACE)
    scale = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[suffix]
    assert float(number.replace(",", "")) * scale == pytest.approx(value, rel=0.0051, abs=0.5)


@pytest.mark.parametrize(
    ("loss", "text"), [(None, "\u2013"), (0.0, "1.00"), (1.268, "3.55"), (14.5, "over 1,000,000")]
)
def test_perplexity(loss: float | None, text: str) -> None:
    assert words.perplexity(loss).replace(words.NO_BREAK_SPACE, " ") == text


@given(st.floats(0.1, 13.9))
def test_perplexity_has_three_digits(loss: float) -> None:
    assert float(words.perplexity(loss).replace(",", "")) == pytest.approx(math.exp(loss), rel=0.0051)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1564, "+0.156"), (-0.1564, "\u22120.156"), (0.0, "0.000"), (-0.0001, "0.000"), (None, "\u2013")],
)
def test_signed(value: float | None, text: str) -> None:
    assert words.signed(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.5, "50%"), (0.02, "2%"), (0.085, "8.5%"), (1.35, "135%"), (0.0, "0%"), (-0.031, "\u22123.1%")],
)
def test_percent(ratio: float, text: str) -> None:
    assert words.percent(ratio) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.42, "4.4 s"),
        (59.96, "1 min 00 s"),
        (477.7, "7 min 58 s"),
        (3599.6, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (None, "\u2013"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert words.duration(seconds).replace(words.NO_BREAK_SPACE, " ") == text


@pytest.mark.parametrize(
    ("layers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0, 1"), ([0, 1, 2, 5, 7, 8, 9], "0 to 2, 5, 7 to 9")],
)
def test_layer_ranges(layers: list[int], text: str) -> None:
    assert words.layer_ranges(layers) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0\u00a0bytes"),
        (999, "999\u00a0bytes"),
        (1000, "1.00\u00a0kB"),
        (14_745_600, "14.7\u00a0MB"),
        (1.6e12, "1.60\u00a0TB"),
    ],
)
def test_size(value: float | None, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(15.84, "ms", "15.8 ms"), (15_401_344, "bytes", "15.4 M bytes"), (0.0, "", "0"), (9.996, "", "10.0")],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert words.quantity(value, unit).replace(words.NO_BREAK_SPACE, " ") == text


@pytest.mark.parametrize(
    ("text", "result"), [("it won", "It won."), ("It won.", "It won."), (" who? ", "Who?"), ("", "")]
)
def test_sentence(text: str, result: str) -> None:
    assert words.sentence(text) == result


def test_the_sizes_of_a_mixture_name_its_experts_and_no_axis_that_it_lacks() -> None:
    mixture = {"hidden": 64, "heads": 4, "kv_heads": 2, "layers": 3, "experts": 8, "expert_mlp": 96}
    assert words.sizes(mixture) == "hidden 64, heads 4, KV heads 2, experts 8, expert MLP 96, layers 3"
