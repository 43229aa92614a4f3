from __future__ import annotations

import numpy as np
import pytest
from transformers import PretrainedConfig

from space.architecture import Architecture, Axis
from space.axis_map import discover
from space.counting import Monomial, Polynomial, matrix_polynomial, parameter_polynomial
from tests.contracts.tiny import TINY
from tests.space.models import LLAMA_8B, QWEN3_8B, SMALL


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(QWEN3_8B, 8_190_735_360), (LLAMA_8B, 8_030_261_248), (SMALL, 18_984)],
    ids=["Qwen3-8B", "Llama-3.1-8B", "by hand"],
)
def test_known_sizes(config: PretrainedConfig, parameters: int) -> None:
    axis_map = discover(config)
    assert parameter_polynomial(axis_map).of(axis_map.teacher) == parameters


def test_a_student_is_counted_by_the_formula_of_its_class() -> None:
    a = Architecture(hidden=3072, mlp=9216, heads=32, kv_heads=8, layers=32)
    layer = (
        2 * a.hidden * a.heads * 128 + 2 * a.hidden * a.kv_heads * 128 + 3 * a.hidden * a.mlp + 2 * a.hidden
    )
    expected = 2 * 128256 * a.hidden + a.layers * layer + a.hidden
    assert parameter_polynomial(discover(LLAMA_8B)).of(a) == expected


def test_large_counts_do_not_overflow() -> None:
    axis_map = discover(LLAMA_8B)
    count = parameter_polynomial(axis_map)
    largest = Architecture(**{axis.value: 8 * axis_map.teacher[axis] for axis in Axis})
    sizes = {axis: np.array([largest[axis]]) for axis in Axis}
    assert count.at(sizes).tolist() == [count.of(largest)]
    assert count.of(largest) > 2**41


class TestPolynomial:
    #: 5 + 3·layers·hidden·mlp + 2·hidden
    COUNT = Polynomial(
        (
            Monomial(5, ()),
            Monomial(3, ((Axis.HIDDEN, 1), (Axis.LAYERS, 1), (Axis.MLP, 1))),
            Monomial(2, ((Axis.HIDDEN, 1),)),
        )
    )
    SIZES = Architecture(hidden=7, mlp=11, heads=1, kv_heads=1, layers=2)

    def test_it_is_the_sum_of_its_monomials(self) -> None:
        assert self.COUNT.of(self.SIZES) == 5 + 3 * 2 * 7 * 11 + 2 * 7

    def test_powers(self) -> None:
        square = Polynomial((Monomial(2, ((Axis.HIDDEN, 2),)),))
        assert square.of(self.SIZES) == 98
        assert square.at({Axis.HIDDEN: np.array([1, 2, 3])}).tolist() == [2, 8, 18]

    def test_it_splits_into_constant_and_slope(self) -> None:
        constant, slope = self.COUNT.split(Axis.MLP)
        assert (constant.of(self.SIZES), slope.of(self.SIZES)) == (5 + 14, 42)

    def test_it_splits_along_a_linear_axis_only(self) -> None:
        with pytest.raises(AssertionError, match="not linear in hidden"):
            Polynomial((Monomial(1, ((Axis.HIDDEN, 2),)),)).split(Axis.HIDDEN)


class TestMatrices:
    """Small: hidden 24, MLP 44, 4 heads and 2 KV heads of 8, 3 layers, vocabulary 50."""

    LAYERS = 3 * (2 * 24 * 32 + 2 * 24 * 16 + 3 * 24 * 44)

    def test_an_embedding_is_looked_up_and_a_head_multiplied_with(self) -> None:
        axis_map = discover(SMALL)
        assert matrix_polynomial(axis_map).of(axis_map.teacher) == self.LAYERS + 50 * 24

    def test_a_tied_embedding_is_the_head(self) -> None:
        tied = type(SMALL)(**SMALL.to_dict() | {"tie_word_embeddings": True})
        axis_map = discover(tied)
        assert matrix_polynomial(axis_map).of(axis_map.teacher) == self.LAYERS + 50 * 24

    def test_biases_and_norms_are_no_matrices(self) -> None:
        axis_map = discover(TINY["llama"]["tied-biases"])
        a, head_dim = axis_map.teacher, axis_map.head_dim
        heads = 2 * a.hidden * (a.heads + a.kv_heads) * head_dim
        expected = a.layers * (heads + 3 * a.hidden * a.mlp) + 48 * a.hidden
        assert matrix_polynomial(axis_map).of(a) == expected
