"""Tracing every matrix product with a mapped tensor, whatever module or function computes it.

Neurons and heads are scored where the next projection reads them. Classes implement that projection in
many ways: a linear layer, GPT-2's ``addmm`` with a transposed weight, a product with one expert's
slice of a three-dimensional tensor, a batched product over all experts. In all of them an operand has the
memory address of a parameter or of an expert's slice, so the tracer looks for these addresses.
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
    """One product with a parameter, or with an expert's or several experts' slices of it."""

    tensor: MappedTensor
    dimension: int
    """The parameter's dimension that is contracted with the input."""
    first_expert: int
    """The expert whose slice the operand starts with; 0 for a whole parameter."""
    values: Tensor
    """(..., n) the input."""
    experts: int | None
    """The number of experts in a batched product, one matrix each; None for a single matrix."""


@dataclass(frozen=True)
class _Slice:
    """A parameter, or the part of it that starts with one expert, as found by its address."""

    tensor: MappedTensor
    strides: tuple[int, ...]
    shape: tuple[int, ...]
    expert: int


@dataclass(frozen=True)
class _Operands:
    """Positions and names of a function's input and weight, and the weight's dimension that it sums over."""

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
    """A mode that calls ``on_product`` for every product with one of the tensors."""

    def __init__(
        self, model: nn.Module, tensors: Iterable[MappedTensor], on_product: Callable[[TracedProduct], None]
    ) -> None:
        super().__init__()
        self._on_product = on_product
        self._slices = dict(
            found for tensor in tensors for found in _slices(tensor, model.get_parameter(tensor.name))
        )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function; if it is a product, first check whether its weight is a traced tensor."""
        named = kwargs or {}
        if (operands := _OPERANDS.get(func)) is not None:
            weight = _argument(operands, operands.weight, args, named)
            if (part := self._slices.get(weight.data_ptr())) is not None:
                self._report(part, weight, operands.summed, _argument(operands, operands.values, args, named))
        return func(*args, **named)

    def _report(self, part: _Slice, weight: Tensor, summed: int, values: Tensor) -> None:
        """Report a product, with the parameter's dimension that has the stride of the summed one.

        A dimension of length 1 shares its stride with its neighbour; then the lengths decide.
        """
        found = [n for n, stride in enumerate(part.strides) if stride == weight.stride(summed)]
        if weight.ndim < 2 or not found:
            return
        dimension = next((n for n in found if part.shape[n] == weight.shape[summed]), found[0])
        experts = weight.shape[0] if weight.ndim == 3 else None
        self._on_product(TracedProduct(part.tensor, dimension, part.expert, values, experts))


def _argument(operands: _Operands, number: int, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    value: Tensor = args[number] if len(args) > number else named[operands.names[number]]
    return value


def _slices(tensor: MappedTensor, parameter: Tensor) -> Iterable[tuple[int, _Slice]]:
    """Yield the start addresses of a parameter and of each expert's slice of it."""
    yield parameter.data_ptr(), _Slice(tensor, parameter.stride(), tuple(parameter.shape), 0)
    for number, layout in enumerate(tensor.dimensions):
        if Axis.EXPERTS in axes_of(layout):
            experts, length = units_along(layout, Axis.EXPERTS)
            step = length * parameter.stride(number) * parameter.element_size()
            for expert, address in enumerate(accumulate([parameter.data_ptr(), *[step] * (experts - 1)])):
                yield address, _Slice(tensor, parameter.stride(), tuple(parameter.shape), expert)


def units_along(layout: Layout, axis: Axis) -> tuple[int, int]:
    """Return how many units of an axis lie along a dimension, and the number of entries of each.

    Raises:
        ValueError: the dimension is not a plain row of units.
    """
    number = 1
    while isinstance(layout, PerUnit):
        number *= layout.units
        if layout.axis is axis:
            return number, layout.inner.length
        layout = layout.inner
    raise ValueError(f"{layout} is no row of units of {axis}")
