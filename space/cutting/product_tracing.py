"""Seeing every product with a mapped tensor, whatever module or function computes it.

Neurons and heads are scored where the next projection reads them. Classes write that projection in
many ways: a linear layer, GPT-2's ``addmm`` with a transposed weight, a product with one expert's
slice of a three-dimensional tensor, a batched product with all of them. They have in common that an
operand lies where a parameter lies, so that is what is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from space.axes.architecture import Axis
from space.axes.axis_map import MappedTensor
from space.axes.layout import Layout, PerUnit, axes_of


@dataclass(frozen=True)
class TracedProduct:
    """One product with a parameter, or with the slices of one that belong to some experts."""

    tensor: MappedTensor
    dimension: int
    """The parameter's, along which the input runs."""
    first_expert: int
    values: Tensor
    """(..., n) the input."""
    experts: int | None
    """How many experts are read at once, one matrix each; None for a single matrix."""


@dataclass(frozen=True)
class _Place:
    tensor: MappedTensor
    strides: tuple[int, ...]
    shape: tuple[int, ...]
    expert: int


@dataclass(frozen=True)
class _Operands:
    """Which arguments of a function are input and weight, and over which dimension of the weight it sums."""

    values: int
    weight: int
    names: tuple[str, ...]
    summed: int


_PRODUCT = _Operands(0, 1, ("input", "mat2"), -2)
_MATMUL = _Operands(0, 1, ("input", "other"), -2)
_OPERANDS: Mapping[Callable[..., Any], _Operands] = {
    nn.functional.linear: _Operands(0, 1, ("input", "weight"), -1),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), _MATMUL),
    **dict.fromkeys((torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm), _PRODUCT),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm), _Operands(1, 2, ("", "mat1", "mat2"), -2)),
    **dict.fromkeys((torch.baddbmm, torch.Tensor.baddbmm), _Operands(1, 2, ("", "batch1", "batch2"), -2)),
}


class ProductTracer(TorchFunctionMode):
    """Within this mode ``hear`` is told of every product with one of the tensors."""

    def __init__(
        self, model: nn.Module, tensors: Iterable[MappedTensor], hear: Callable[[TracedProduct], None]
    ) -> None:
        super().__init__()
        self._hear = hear
        self._places = dict(
            found for tensor in tensors for found in _places(tensor, model.get_parameter(tensor.name))
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function, after a look at its operands if it is a product."""
        named = kwargs or {}
        if (operands := _OPERANDS.get(func)) is not None:
            weight = _argument(operands, operands.weight, args, named)
            if (place := self._places.get(weight.data_ptr())) is not None:
                self._look(place, weight, operands.summed, _argument(operands, operands.values, args, named))
        return func(*args, **named)

    def _look(self, place: _Place, weight: Tensor, summed: int, values: Tensor) -> None:
        """Tell which dimension of the parameter the input runs along: the one of the same stride.

        A single neuron has the stride of what is beside it; then the length tells.
        """
        found = [n for n, stride in enumerate(place.strides) if stride == weight.stride(summed)]
        if weight.ndim < 2 or not found:
            return
        dimension = next((n for n in found if place.shape[n] == weight.shape[summed]), found[0])
        experts = weight.shape[0] if weight.ndim == 3 else None
        self._hear(TracedProduct(place.tensor, dimension, place.expert, values, experts))


def _argument(operands: _Operands, number: int, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    value: Tensor = args[number] if len(args) > number else named[operands.names[number]]
    return value


def _places(tensor: MappedTensor, parameter: Tensor) -> Iterable[tuple[int, _Place]]:
    """Where a parameter begins, and each expert's part of it."""
    yield parameter.data_ptr(), _Place(tensor, parameter.stride(), tuple(parameter.shape), 0)
    for number, layout in enumerate(tensor.dimensions):
        if Axis.EXPERTS in axes_of(layout):
            experts, length = units_along(layout, Axis.EXPERTS)
            step = length * parameter.stride(number) * parameter.element_size()
            for expert, address in enumerate(accumulate([parameter.data_ptr(), *[step] * (experts - 1)])):
                yield address, _Place(tensor, parameter.stride(), tuple(parameter.shape), expert)


def units_along(layout: Layout, axis: Axis) -> tuple[int, int]:
    """How many units of an axis follow one another along a dimension, and the entries of each.

    Raises:
        ValueError: the dimension is no plain row of units.
    """
    number = 1
    while isinstance(layout, PerUnit):
        number *= layout.units
        if layout.axis is axis:
            return number, layout.inner.length
        layout = layout.inner
    raise ValueError(f"{layout} is no row of units of {axis}")
