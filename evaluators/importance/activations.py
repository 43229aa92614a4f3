"""Listening to a teacher: sums of absolute activations where the axis map says that an axis is read.

Scores follow Minitron (arXiv 2407.14679, section 2.2): the mean of |a| along the sequence, then the
L2 norm along the batch. The square of the norm is a plain sum over the blocks, so any split of the
calibration set into batches gives the same scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from space.architecture import Axis
from space.axis_map import AxisMap, layer_modules
from space.axis_map import Tensor as MappedTensor
from space.input_error import InputError


class Squares:
    """A streaming sum over blocks of (mean over the sequence of |a|)²."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, activations: Tensor) -> None:
        """Take in (B, T, units) activations."""
        means = activations.detach().abs().float().mean(dim=1)
        squares = means.double().square().sum(dim=0).cpu()
        self.total = squares if self.total is None else self.total + squares

    @property
    def norm(self) -> Tensor:
        """(units,) float64: the L2 norm over all blocks seen."""
        assert self.total is not None, "nothing was listened to"
        return self.total.sqrt()


class Influence:
    """Block influence of a layer: 1 − mean cosine between its input and its output (section 2.2)."""

    def __init__(self) -> None:
        self.cosines, self.tokens = 0.0, 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Take in (B, T, D) states at the layer's input and output."""
        cosine = nn.functional.cosine_similarity(before.detach().float(), after.detach().float(), dim=-1)
        self.cosines += float(cosine.double().sum())
        self.tokens += cosine.numel()

    @property
    def value(self) -> float:
        """The influence over all tokens seen."""
        return 1 - self.cosines / self.tokens


class Listener:
    """Hooks on a teacher that gather every width score and every block influence at once."""

    def __init__(self, model: nn.Module, axis_map: AxisMap) -> None:
        layers = axis_map.teacher.layers
        self.axis_map = axis_map
        self.neurons = [Squares() for _ in range(layers)]
        self.heads = [Squares() for _ in range(layers)]
        self.norms = {tensor.module: Squares() for tensor in norm_tensors(model, axis_map)}
        self.influences = [Influence() for _ in range(layers)]

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Listen to every forward pass within the context."""
        handles = [*self._width_hooks(model), *self._layer_hooks(model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _width_hooks(self, model: nn.Module) -> Iterator[RemovableHandle]:
        for tensor in self.axis_map.named(Axis.HIDDEN, Axis.MLP):
            assert tensor.layer is not None
            yield self._on_input(model, tensor.module, self.neurons[tensor.layer], stride=1)
        for tensor in self.axis_map.named(Axis.HIDDEN, Axis.HEADS):
            assert tensor.layer is not None
            stride = tensor.dimensions[1].stride
            yield self._on_input(model, tensor.module, self.heads[tensor.layer], stride)
        for name, squares in self.norms.items():

            def outputs(_: nn.Module, __: Any, output: Tensor, squares: Squares = squares) -> None:
                squares.add(output)

            yield model.get_submodule(name).register_forward_hook(outputs)

    @staticmethod
    def _on_input(model: nn.Module, module: str, squares: Squares, stride: int) -> RemovableHandle:
        def inputs(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            values = arguments[0]
            if stride > 1:
                values = values.unflatten(-1, (-1, stride)).float().norm(dim=-1)
            squares.add(values)

        return model.get_submodule(module).register_forward_pre_hook(inputs)

    def _layer_hooks(self, model: nn.Module) -> Iterator[RemovableHandle]:
        for layer, influence in zip(layer_modules(model, self.axis_map), self.influences, strict=True):

            def states(
                _: nn.Module,
                arguments: tuple[Tensor, ...],
                keywords: dict[str, Any],
                output: Tensor | tuple[Tensor, ...],
                influence: Influence = influence,
            ) -> None:
                before = arguments[0] if arguments else keywords["hidden_states"]
                influence.add(before, output if isinstance(output, Tensor) else output[0])

            yield layer.register_forward_hook(states, with_kwargs=True)


def norm_tensors(model: nn.Module, axis_map: AxisMap) -> list[MappedTensor]:
    """The weights of the norms on the residual stream: vectors over hidden outside linear layers."""
    return [
        tensor
        for tensor in axis_map.named(Axis.HIDDEN)
        if tensor.name.endswith(".weight") and not isinstance(model.get_submodule(tensor.module), nn.Linear)
    ]


def finite(scores: Tensor, what: str) -> Tensor:
    """The scores as float32, or a message if any is not finite.

    Raises:
        InputError: the teacher's activations are not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise InputError(
            "The teacher's activations have to be finite on the calibration set",
            f"the scores of {what} are not",
            "Try --dtype float32, or another teacher",
        )
    return scores.float()
