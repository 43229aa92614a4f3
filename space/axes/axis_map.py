"""Which dimension of which tensor belongs to which axis: the map of one teacher.

A class that multiplies embeddings by √hidden would multiply those of a narrower student by less. The
factor is carried in the weights: embeddings times √(D/k), and, where the head is the same tensor, the
final norm divided by it. Multipliers that are fields of the config are rescaled there.

``space.discovery`` makes it. It serves to count, to find where to listen for activations, to sort and
to cut, with no code of any family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from space.axes.architecture import Architecture, Axis
from space.axes.layers import LayerSignature
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit, axes_of, prefix


def wildcard_name(name: str) -> str:
    """A tensor's name with every number in it starred: the same for all layers."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)


@dataclass(frozen=True)
class TensorRoles:
    """Names of the tensors through which scales are carried."""

    embedding: str
    head: str
    """The embedding's name where the two are tied."""
    final_norm: str | None
    final_bias: str | None = None
    """The final norm's bias, where it has one."""


@dataclass(frozen=True)
class Scales:
    """By which powers of a size a class multiplies what it computes."""

    embedding: float = 0.0
    """Embeddings are multiplied by hidden to this power."""
    head: float = 0.0
    """Logits are multiplied by hidden to this power."""
    norm_offset: float = 0.0
    """The final norm multiplies by its weight plus this."""
    queries: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Where attention divides by the root of a head size that is cut: the dimensions (names with numbers
    starred) that hold queries, and which of the parts for each head they are."""
    rescaled: Mapping[str, tuple[Axis, float]] = field(default_factory=dict)
    """Config fields that have to grow with a power of a size for the function to stay the same."""

    def fields(self, axis_map: AxisMap, student: Architecture) -> dict[str, float]:
        """The rescaled fields of a student's config."""
        return {
            name: getattr(axis_map.config, name) * (student[axis] / axis_map.teacher[axis]) ** power
            for name, (axis, power) in self.rescaled.items()
        }


def compensate_scales(weights: dict[str, Tensor], axis_map: AxisMap, student: Architecture) -> None:
    """Change a student's weights so that what its class derives from its size changes nothing.

    Args:
        weights: the student's, by name; changed in place.
        axis_map: the teacher's.
        student: the student's sizes.
    """
    if student.head_dim != axis_map.teacher.head_dim:
        _carry_queries(weights, axis_map, student)
    scales, roles = axis_map.scales, axis_map.roles
    ratio = axis_map.teacher.hidden / student.hidden
    if ratio == 1 or (not scales.embedding and not scales.head):
        return
    weights[roles.embedding].mul_(ratio**scales.embedding)
    if roles.head != roles.embedding:
        weights[roles.head].mul_(ratio**scales.head)
        return
    assert roles.final_norm is not None, "a tied head is scaled through the final norm"
    factor = ratio ** (scales.head - scales.embedding)
    norm = weights[roles.final_norm]
    norm.add_(scales.norm_offset).mul_(factor).sub_(scales.norm_offset)
    if roles.final_bias is not None:
        weights[roles.final_bias].mul_(factor)


def _carry_queries(weights: dict[str, Tensor], axis_map: AxisMap, student: Architecture) -> None:
    """Queries times √(d'/d): attention divides by √d' where the teacher divides by √d."""
    factor = (student.head_dim / axis_map.teacher.head_dim) ** 0.5
    layouts = {wildcard_name(tensor.name): tensor.dimensions for tensor in axis_map.tensors}
    for name, values in weights.items():
        for (where, place), part in axis_map.scales.queries.items():
            if wildcard_name(name) == where:
                layout = layouts[where][place]
                mask = prefix(_of_part(layout, part), 0, layout, student, axis_map.teacher)
                shape = [-1 if dimension == place else 1 for dimension in range(values.ndim)]
                values.mul_((1 + (factor - 1) * mask).view(shape).to(values))


def _of_part(layout: Layout, part: int) -> Tensor:
    """(length,) 1 for the entries of one of the parts that a head has in a tensor, else 0."""
    match layout:
        case Fixed(length):
            return torch.ones(length)
        case Concatenated(parts):
            return torch.cat([torch.full((p.length,), float(n == part)) for n, p in enumerate(parts)])
        case PerUnit(None, units, inner):
            return (torch.arange(units) == part).float().repeat_interleave(inner.length)
        case PerUnit(_, units, inner):
            return _of_part(inner, part).repeat(units)


@dataclass(frozen=True)
class MappedTensor:
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
class ResidualStream:
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
    tensors: tuple[MappedTensor, ...]
    """Every parameter once (a tied one under its first name), then the buffers that are saved."""
    stacks: tuple[str, ...]
    """Prefixes under which one numbered module a layer lies, such as ``model.layers.``."""
    kinds: tuple[int, ...]
    """For each layer the number of its kind; layers of one kind have tensors of the same shapes."""
    roles: TensorRoles
    couplings: tuple[Coupling, ...] = ()
    refused: Mapping[Axis, str] = field(default_factory=dict)
    """Axes that the class has and that are not cut, with the reason."""
    buffers: frozenset[str] = frozenset()
    """Which of ``tensors`` are no parameters."""
    scales: Scales = field(default_factory=Scales)
    """What the class derives from sizes, to be made up for."""
    stream: ResidualStream | None = None
    """How the residual stream is read; None where it cannot be turned, or need not be."""
    head_apart: bool = False
    """The teacher's head is its embedding table, and was set apart for the basis."""
    characters: tuple[LayerSignature, ...] = ()
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
BUILD_ERRORS = (
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


def student_name(tensor: MappedTensor, axis_map: AxisMap, kept: Sequence[int]) -> str | None:
    """A tensor's name in the student; None if its layer is gone."""
    if tensor.layer is None:
        return tensor.name
    if tensor.layer not in kept:
        return None
    stack = next(stack for stack in axis_map.stacks if tensor.name.startswith(f"{stack}{tensor.layer}."))
    rest = tensor.name.removeprefix(f"{stack}{tensor.layer}")
    return f"{stack}{kept.index(tensor.layer)}{rest}"
