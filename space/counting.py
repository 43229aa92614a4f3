"""How many parameters an architecture has: in closed form from the axis map, nothing built.

Every dimension is linear in one axis, so a tensor's size is a monomial in the sizes, and the whole
count a polynomial. The layers of one stack are alike in shape, so the layer axis is one more factor.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from space.architecture import Architecture, Axis
from space.axis_map import AxisMap, Tensor

Sizes = TypeVar("Sizes", int, NDArray[np.int64])
Powers = tuple[tuple[Axis, int], ...]


@dataclass(frozen=True)
class Monomial:
    """``coefficient`` times each axis's size to its power."""

    coefficient: int
    powers: Powers


@dataclass(frozen=True)
class Polynomial:
    """A count as a function of the sizes of the axes."""

    monomials: tuple[Monomial, ...]

    def at(self, sizes: dict[Axis, Sizes]) -> Sizes:
        """The count at sizes given as whole numbers or as arrays of one shape (then vectorised)."""
        total = None
        for monomial in self.monomials:
            product = monomial.coefficient
            for axis, power in monomial.powers:
                product = product * sizes[axis] ** power  # type: ignore[assignment]
            total = product if total is None else total + product
        assert total is not None, "a model has parameters"
        return total  # type: ignore[return-value]

    def of(self, architecture: Architecture) -> int:
        """The count of one architecture."""
        return self.at({axis: architecture[axis] for axis in Axis})

    def split(self, axis: Axis) -> tuple[Polynomial, Polynomial]:
        """(a, b) such that the count is a + b × the size of ``axis``; it has to be linear in it."""
        constant: list[Monomial] = []
        slope: list[Monomial] = []
        for monomial in self.monomials:
            powers = dict(monomial.powers)
            power = powers.pop(axis, 0)
            assert power <= 1, f"the count is not linear in {axis}"
            rest = Monomial(monomial.coefficient, tuple(powers.items()))
            (slope if power else constant).append(rest)
        return Polynomial(tuple(constant)), Polynomial(tuple(slope))


def parameter_polynomial(axis_map: AxisMap) -> Polynomial:
    """The number of parameters of a student of this teacher, tied weights counted once."""
    return _polynomial(axis_map, axis_map.tensors)


def matrix_polynomial(axis_map: AxisMap) -> Polynomial:
    """The weights that each token is multiplied with: all matrices but the embedding table.

    With tied embeddings the table serves as the head too, and counts once.
    """
    embedding = next(t for t in axis_map.tensors if len(t.dimensions) == 2 and t.layer is None)
    tied = bool(axis_map.config.tie_word_embeddings)
    matrices = [t for t in axis_map.tensors if len(t.dimensions) == 2 and (tied or t is not embedding)]
    return _polynomial(axis_map, tuple(matrices))


def _polynomial(axis_map: AxisMap, tensors: tuple[Tensor, ...]) -> Polynomial:
    terms: Counter[Powers] = Counter()
    for tensor in tensors:
        coefficient, powers = 1, Counter[Axis]()
        for dimension in tensor.dimensions:
            if dimension.axis is None:
                coefficient *= dimension.length
            else:
                coefficient *= dimension.stride
                powers[dimension.axis] += 1
        if tensor.layer is not None:
            powers[Axis.LAYERS] += 1
        terms[tuple(sorted(powers.items()))] += coefficient
    layers = axis_map.teacher.layers
    monomials = []
    for form, coefficient in terms.items():
        if dict(form).get(Axis.LAYERS):
            coefficient, rest = divmod(coefficient, layers)
            assert rest == 0, "the layers are alike"
        monomials.append(Monomial(coefficient, form))
    return Polynomial(tuple(monomials))
