"""Which dimension of which tensor belongs to which axis, found by asking the model class itself.

The class is built on the meta device from the teacher's config, then again with one size after the
other doubled. A dimension that grew belongs to the doubled axis, and grew by ``stride`` entries a
unit: with four more heads, ``q_proj`` grows by four times the head size. The map serves to count
parameters, to find where to listen for activations, to sort and to cut, with no code of any family.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from space.architecture import Architecture, Axis
from space.families import Family, family_of
from space.input_error import InputError

Shapes = dict[str, tuple[int, ...]]
_WIDTHS = (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.KV_HEADS)
_LAYER = re.compile(r"^(?P<stack>.*?\.)(?P<layer>\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True)
class Dimension:
    """One dimension of a tensor: ``units`` of an axis, each ``stride`` entries long in a row."""

    axis: Axis | None
    """None where no axis moves the dimension (vocabulary, head size)."""
    units: int
    stride: int

    @property
    def length(self) -> int:
        """Entries along the dimension."""
        return self.units * self.stride


@dataclass(frozen=True)
class Tensor:
    """A parameter's place in the model: its dimensions, and its layer if it belongs to one."""

    name: str
    dimensions: tuple[Dimension, ...]
    layer: int | None

    @property
    def axes(self) -> tuple[Axis | None, ...]:
        """The axis of each dimension."""
        return tuple(dimension.axis for dimension in self.dimensions)

    @property
    def module(self) -> str:
        """The name of the module that owns the parameter."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class AxisMap:
    """The map of one teacher; made by ``discover``."""

    config: PretrainedConfig
    family: Family
    teacher: Architecture
    """The teacher's own sizes."""
    head_dim: int
    tensors: tuple[Tensor, ...]
    """Every parameter once; a tied one under its first name."""
    stack: str
    """The layers' prefix, such as ``model.layers.``; the layer's number follows."""

    def named(self, *axes: Axis | None) -> list[Tensor]:
        """The tensors whose dimensions have exactly these axes, in the model's order."""
        return [tensor for tensor in self.tensors if tensor.axes == axes]


def build(config: PretrainedConfig) -> PreTrainedModel:
    """The config's model on the meta device: shapes without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def with_sizes(config: PretrainedConfig, changes: dict[str, Any]) -> PretrainedConfig:
    """A copy of a config with some fields changed, checked by the class's own rules.

    Raises:
        StrictDataclassError: the class does not allow these sizes together.
    """
    fields = {**config.to_dict(), **changes}
    for derived in ("architectures", "transformers_version"):
        fields.pop(derived, None)
    sized: PretrainedConfig = type(config)(**fields)
    return sized


def discover(config: PretrainedConfig) -> AxisMap:
    """Find every axis of a teacher from its config alone.

    Raises:
        InputError: the type is not vouched for, or a dimension moves in a way the map cannot hold.
    """
    family = family_of(config)
    if getattr(config, "is_heterogeneous", False):
        raise _unclear(config, Axis.LAYERS, "the layers differ in size")
    sizes = {axis: int(getattr(config, name)) for axis, name in family.fields.items()}
    head_dim = int(getattr(config, family.head_dim, None) or sizes[Axis.HIDDEN] // sizes[Axis.HEADS])
    base = with_sizes(config, {family.head_dim: head_dim})
    shapes = _shapes(base)
    growth = _growth(base, family, sizes, shapes)
    stack = _stack(shapes, sizes[Axis.LAYERS], config)
    tensors = tuple(
        Tensor(name, _dimensions(config, name, shape, sizes, growth), _layer(name, stack))
        for name, shape in shapes.items()
    )
    teacher = Architecture(**{axis.value: size for axis, size in sizes.items()})
    return AxisMap(base, family, teacher, head_dim, tensors, stack)


def _shapes(config: PretrainedConfig) -> Shapes:
    return {name: tuple(p.shape) for name, p in build(config).named_parameters()}


def _growth(
    base: PretrainedConfig, family: Family, sizes: dict[Axis, int], shapes: Shapes
) -> dict[Axis, Shapes]:
    """By how much every dimension grows when an axis is doubled.

    The axes are doubled one after the other and stay so, hidden before heads and heads before KV
    heads: a class may want each to be a multiple of the next.
    """
    growth, changes, before = {}, {}, shapes
    for axis in _WIDTHS:
        changes[family.fields[axis]] = 2 * sizes[axis]
        after = _shapes(with_sizes(base, changes))
        if after.keys() != before.keys():
            raise _unclear(base, axis, "parameters appear or vanish with its size")
        growth[axis] = {name: _difference(after[name], before[name]) for name in shapes}
        before = after
    return growth


def _difference(after: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(after, before, strict=True))


def _dimensions(
    config: PretrainedConfig,
    name: str,
    shape: tuple[int, ...],
    sizes: dict[Axis, int],
    growth: dict[Axis, Shapes],
) -> tuple[Dimension, ...]:
    dimensions = []
    for place, length in enumerate(shape):
        movers = [axis for axis in _WIDTHS if growth[axis][name][place]]
        if len(movers) > 1:
            raise _unclear(config, movers[0], f"{name} moves with {' and '.join(movers)} at once")
        if not movers:
            dimensions.append(Dimension(None, length, 1))
            continue
        axis = movers[0]
        stride, rest = divmod(growth[axis][name][place], sizes[axis])
        if rest or stride * sizes[axis] != length:
            raise _unclear(config, axis, f"dimension {place} of {name} is no multiple of its size")
        dimensions.append(Dimension(axis, sizes[axis], stride))
    return tuple(dimensions)


def _stack(shapes: Shapes, layers: int, config: PretrainedConfig) -> str:
    """The prefix under which exactly ``layers`` numbered groups of parameters lie."""
    numbers: dict[str, set[int]] = {}
    for name in shapes:
        if match := _LAYER.match(name):
            numbers.setdefault(match["stack"], set()).add(int(match["layer"]))
    stacks = [stack for stack, found in numbers.items() if found == set(range(layers))]
    if len(stacks) != 1:
        raise _unclear(config, Axis.LAYERS, f"{len(stacks)} stacks of {layers} layers were found")
    return stacks[0]


def _layer(name: str, stack: str) -> int | None:
    match = _LAYER.match(name)
    return int(match["layer"]) if match and match["stack"] == stack else None


def _unclear(config: PretrainedConfig, axis: Axis, what: str) -> InputError:
    return InputError(
        f"Every axis of a teacher has to be told from its shapes; {axis} is not",
        f"in {config.model_type!r}, {what}",
        "Choose another teacher with --model",
    )


def layer_modules(model: nn.Module, axis_map: AxisMap) -> list[nn.Module]:
    """The decoder layers of a built model, first to last."""
    return [model.get_submodule(f"{axis_map.stack}{i}") for i in range(axis_map.teacher.layers)]
