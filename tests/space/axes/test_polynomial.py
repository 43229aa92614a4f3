from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from space.axes.architecture import Architecture, Axis
from space.axes.polynomial import Polynomial

HIDDEN, MLP, HEADS, KV = (
    Polynomial.variable(axis) for axis in (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.KV_HEADS)
)
#: 5 + 3·hidden·mlp + 2·hidden
COUNT = Polynomial.constant(5) + HIDDEN * MLP * 3 + HIDDEN * 2
SIZES = Architecture(hidden=7, mlp=11, heads=6, kv_heads=2, layers=2)
#: Two kinds of layers, of which 0, 1, 2, 3 kept layers hold so many.
KEPT = {0: np.array([0, 1, 1, 2]), 1: np.array([0, 0, 1, 1])}

axes = st.sampled_from(list(Axis))
factors = st.fractions(-50, 50, max_denominator=6)


@st.composite
def polynomials(draw: st.DrawFn) -> Polynomial:
    terms = draw(st.lists(st.tuples(factors, st.lists(axes, max_size=3)), max_size=5))
    total = Polynomial.constant(0)
    for factor, names in terms:
        product = Polynomial.constant(factor)
        for axis in names:
            product = product * Polynomial.variable(axis)
        total += product
    return total


def by_hand(polynomial: Polynomial, sizes: Mapping[Axis, int | Fraction]) -> Fraction:
    total = Fraction(0)
    for powers, factor in polynomial.terms.items():
        for variable, power in powers:
            assert isinstance(variable, Axis)
            factor *= sizes[variable] ** power
        total += factor
    return total


architectures = st.builds(Architecture, *[st.integers(0, 10**4)] * len(Axis))


@given(polynomials(), architectures)
def test_it_is_the_sum_of_its_terms(polynomial: Polynomial, sizes: Architecture) -> None:
    exact = by_hand(polynomial, {axis: sizes[axis] for axis in Axis})
    assert polynomial.of(sizes) == exact.numerator // exact.denominator


@given(polynomials(), polynomials(), architectures)
def test_sums_and_products_are_those_of_the_values(
    one: Polynomial, other: Polynomial, sizes: Architecture
) -> None:
    values = {axis: sizes[axis] for axis in Axis}
    a, b = by_hand(one, values), by_hand(other, values)
    assert by_hand(one + other, values) == a + b
    assert by_hand(one - other, values) == a - b
    assert by_hand(one * other, values) == a * b


@given(polynomials(), st.lists(architectures, min_size=1, max_size=4))
def test_arrays_give_what_single_architectures_give(
    polynomial: Polynomial, several: list[Architecture]
) -> None:
    columns = {axis: np.array([sizes[axis] for sizes in several]) for axis in Axis}
    assert polynomial.at(columns).tolist() == [polynomial.of(sizes) for sizes in several]


@given(polynomials(), axes, polynomials(), architectures)
def test_a_variable_can_be_replaced(
    polynomial: Polynomial, axis: Axis, by: Polynomial, sizes: Architecture
) -> None:
    values: dict[Axis, int | Fraction] = {name: sizes[name] for name in Axis}
    inner = by_hand(by, values)
    replaced = by_hand(polynomial.replaced(axis, by), values)
    assert replaced == by_hand(polynomial, values | {axis: inner})


def test_a_known_value() -> None:
    assert COUNT.of(SIZES) == 5 + 3 * 7 * 11 + 2 * 7


def test_queries_of_a_group_cancel_with_the_groups() -> None:
    a_group = HEADS * Polynomial.variable(Axis.KV_HEADS, -1)
    assert (KV * a_group * 8).of(SIZES) == 6 * 8
    with pytest.raises(AssertionError, match="a quotient is left"):
        a_group.of(SIZES)


def test_it_splits_into_constant_and_slope() -> None:
    constant, slope = COUNT.split(Axis.MLP)
    assert (constant.of(SIZES), slope.of(SIZES)) == (5 + 14, 21)
    with pytest.raises(AssertionError, match="not linear in hidden"):
        (HIDDEN * HIDDEN).split(Axis.HIDDEN)


def test_layers_count_by_their_kind() -> None:
    count = Polynomial((HIDDEN * Polynomial.variable(0) + Polynomial.variable(1) * 100).terms, KEPT)
    of = [count.of(Architecture(7, 0, 0, 0, layers)) for layers in range(4)]
    assert of == [0, 7, 107, 114]
    columns = {axis: np.array([SIZES[axis]] * 4) for axis in Axis} | {Axis.LAYERS: np.arange(4)}
    assert count.at(columns).tolist() == of
    assert count.depends_on(Axis.LAYERS)
    assert count.depends_on(Axis.HIDDEN)
    assert not count.depends_on(Axis.MLP)
    assert not HIDDEN.depends_on(Axis.LAYERS)


def test_large_counts_do_not_overflow() -> None:
    large = HIDDEN * MLP * KV
    sizes = Architecture(2**20, 2**21, 1, 2**20, 1)
    columns = {axis: np.array([sizes[axis]]) for axis in Axis}
    assert large.at(columns).tolist() == [2**61] == [large.of(sizes)]
