"""Which dimension of which tensor belongs to which axis: the map of one teacher.

``space.discovery`` makes it. It serves to count, to find where to listen for activations, to sort and
to cut, with no code of any family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from space.axes.architecture import Architecture, Axis
from space.axes.layout import Layout, axes_of
from space.axes.likeness import Character
from space.axes.scales import Roles, Scales


@dataclass(frozen=True)
class Tensor:
    """A parameter's place in the model: its dimensions, and its layer if it belongs to one."""

    name: str
    dimensions: tuple[Layout, ...]
    layer: int | None

    @property
    def axes(self) -> tuple[frozenset[Axis], ...]:
        """The axes that move each dimension."""
        return tuple(frozenset(axes_of(dimension)) for dimension in self.dimensions)

    @property
    def module(self) -> str:
        """The name of the module that owns the parameter."""
        return self.name.rpartition(".")[0]

    def has(self, axis: Axis) -> bool:
        """Whether an axis moves any of the dimensions."""
        return any(axis in axes for axes in self.axes)


@dataclass(frozen=True)
class Coupling:
    """An axis whose size the class ties to another's: ``size = factor × size of of``."""

    axis: Axis
    of: Axis
    factor: Fraction


@dataclass(frozen=True)
class Stream:
    """The norms of a class on the residual stream, and the matrices that read them."""

    readers: Mapping[str, tuple[str, ...]]
    """Name of a norm's weight to names of matrices, numbers starred; those of one layer belong together."""
    offset: float
    """What the norms add to their weights: 0 in most classes, 1 in some."""
    centred: bool = False
    """The norms subtract the mean."""


@dataclass(frozen=True)
class AxisMap:
    """The map of one teacher."""

    config: PretrainedConfig
    """The teacher's, with every size that an axis moves written out."""
    fields: Mapping[Axis, tuple[str, ...]]
    """The config's fields for each axis that a field sets; dots lead into nested configs."""
    teacher: Architecture
    """The teacher's own sizes."""
    head_dim: int
    """Entries of a head's output."""
    tensors: tuple[Tensor, ...]
    """Every parameter once (a tied one under its first name), then the buffers that are saved."""
    stacks: tuple[str, ...]
    """Prefixes under which one numbered module a layer lies, such as ``model.layers.``."""
    kinds: tuple[int, ...]
    """For each layer the number of its kind; layers of one kind have tensors of the same shapes."""
    roles: Roles
    couplings: tuple[Coupling, ...] = ()
    refused: Mapping[Axis, str] = field(default_factory=dict)
    """Axes that the class has and that are not cut, with the reason."""
    buffers: frozenset[str] = frozenset()
    """Which of ``tensors`` are no parameters."""
    scales: Scales = field(default_factory=Scales)
    """What the class derives from sizes, to be made up for."""
    stream: Stream | None = None
    """How the residual stream is read; None where it cannot be turned, or need not be."""
    head_apart: bool = False
    """The teacher's head is its embedding table, and was set apart for the basis."""
    characters: tuple[Character, ...] = ()
    """Of each layer what shapes do not show, such as its window."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that the class has, coupled and refused ones among them."""
        return tuple(axis for axis in Axis if self.teacher[axis])

    @property
    def free(self) -> tuple[Axis, ...]:
        """The axes whose sizes may be chosen: neither coupled to another nor refused."""
        bound = {coupling.axis for coupling in self.couplings} | set(self.refused)
        return tuple(axis for axis in self.axes if axis not in bound)

    @property
    def given(self) -> AxisMap:
        """The map of the teacher as it was given: without a head that was set apart."""
        if not self.head_apart:
            return self
        tensors = tuple(tensor for tensor in self.tensors if tensor.name != self.roles.head)
        return replace(self, tensors=tensors, roles=replace(self.roles, head=self.roles.embedding))

    @property
    def sortable(self) -> frozenset[Axis]:
        """The axes whose units may change places: those that are cut, alone or with another."""
        moving = set(self.free)
        for coupling in self.couplings:
            if coupling.of in moving and coupling.axis not in self.refused:
                moving.add(coupling.axis)
        return frozenset(moving)

    def complete(self, sizes: Mapping[Axis, int]) -> Architecture:
        """The architecture of these sizes; coupled axes follow, all others stay as the teacher's."""
        whole = {axis: sizes.get(axis, self.teacher[axis]) for axis in Axis}
        for coupling in self.couplings:
            size = whole[coupling.of] * coupling.factor
            assert size.denominator == 1, f"{coupling.of} has to move in steps of {1 / coupling.factor}"
            whole[coupling.axis] = int(size)
        return Architecture(**{axis.value: size for axis, size in whole.items()})


def build(config: PretrainedConfig) -> PreTrainedModel:
    """The config's model on the meta device: shapes without memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def layer_modules(model: nn.Module, axis_map: AxisMap) -> list[nn.Module]:
    """The decoder layers of a built model, first to last."""
    return [model.get_submodule(f"{axis_map.stacks[0]}{i}") for i in range(axis_map.teacher.layers)]


#: What a class may raise for sizes that it does not allow.
Refusal = (
    StrictDataclassError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ZeroDivisionError,
)


def student_name(tensor: Tensor, axis_map: AxisMap, kept: Sequence[int]) -> str | None:
    """A tensor's name in the student; None if its layer is gone."""
    if tensor.layer is None:
        return tensor.name
    if tensor.layer not in kept:
        return None
    stack = next(stack for stack in axis_map.stacks if tensor.name.startswith(f"{stack}{tensor.layer}."))
    rest = tensor.name.removeprefix(f"{stack}{tensor.layer}")
    return f"{stack}{kept.index(tensor.layer)}{rest}"
