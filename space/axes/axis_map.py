"""The axis map of a teacher: which dimension of which tensor belongs to which axis.

``space.discovery`` builds the map by probing the model class. Parameter counting, activation capture,
sorting and extraction all use it, so none of them contains code for a particular model family.

The module also compensates for factors that a class derives from its sizes. If it multiplies embeddings by
√hidden, a student's embeddings are multiplied by √(D/k), and where the head is tied to them, the final
norm is divided by the same factor. Multipliers that are config fields are rescaled in the config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from space.axes.architecture import Architecture, Axis
from space.axes.layers import LayerSignature
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit, axes_of, prefix


def wildcard_name(name: str) -> str:
    """Return a tensor's name with every number replaced by ``*``, so that all layers share it."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)


@dataclass(frozen=True)
class TensorRoles:
    """Names of the tensors whose weights compensate for size-dependent factors."""

    embedding: str
    head: str
    """Equal to ``embedding`` where the two are tied."""
    final_norm: str | None
    final_bias: str | None = None
    """The final norm's bias, where it has one."""


@dataclass(frozen=True)
class Scales:
    """The powers of a size by which a class multiplies what it computes."""

    embedding: float = 0.0
    """Embeddings are multiplied by hidden to this power."""
    head: float = 0.0
    """Logits are multiplied by hidden to this power."""
    norm_offset: float = 0.0
    """The final norm multiplies by its weight plus this offset."""
    queries: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """The dimensions that hold queries, where attention divides by the root of a head size that is cut: from
    (wildcard name, dimension) to the index of the queries among the parts that each head has there."""
    rescaled: Mapping[str, tuple[Axis, float]] = field(default_factory=dict)
    """Config fields that must scale with a power of a size for the function to stay the same."""

    def fields(self, axis_map: AxisMap, student: Architecture) -> dict[str, float]:
        """Return the rescaled fields of a student's config."""
        return {
            name: getattr(axis_map.config, name) * (student[axis] / axis_map.teacher[axis]) ** power
            for name, (axis, power) in self.rescaled.items()
        }


def compensate_scales(weights: dict[str, Tensor], axis_map: AxisMap, student: Architecture) -> None:
    """Change a student's weights so that the factors its class derives from its sizes cancel out.

    Args:
        weights: the student's, by name; tensors that change are replaced.
        axis_map: the teacher's.
        student: the student's sizes.
    """
    if student.head_dim != axis_map.teacher.head_dim:
        _rescale_queries(weights, axis_map, student)
    scales, roles = axis_map.scales, axis_map.roles
    ratio = axis_map.teacher.hidden / student.hidden
    if ratio == 1 or (not scales.embedding and not scales.head):
        return
    weights[roles.embedding] = weights[roles.embedding] * ratio**scales.embedding
    if roles.head != roles.embedding:
        weights[roles.head] = weights[roles.head] * ratio**scales.head
        return
    assert roles.final_norm is not None, "a tied head is scaled through the final norm"
    factor = ratio ** (scales.head - scales.embedding)
    offset = scales.norm_offset
    weights[roles.final_norm] = (weights[roles.final_norm] + offset) * factor - offset
    if roles.final_bias is not None:
        weights[roles.final_bias] = weights[roles.final_bias] * factor


def _rescale_queries(weights: dict[str, Tensor], axis_map: AxisMap, student: Architecture) -> None:
    """Multiply queries by √(d'/d), since attention divides by √d' where the teacher divides by √d."""
    factor = (student.head_dim / axis_map.teacher.head_dim) ** 0.5
    layouts = {wildcard_name(tensor.name): tensor.dimensions for tensor in axis_map.tensors}
    for name, values in list(weights.items()):
        for (pattern, dim), part in axis_map.scales.queries.items():
            if wildcard_name(name) == pattern:
                layout = layouts[pattern][dim]
                mask = prefix(_part_mask(layout, part), 0, layout, student, axis_map.teacher)
                shape = [-1 if number == dim else 1 for number in range(values.ndim)]
                weights[name] = weights[name] * (1 + (factor - 1) * mask).view(shape).to(values)


def _part_mask(layout: Layout, part: int) -> Tensor:
    """Return (length,) 1 for the entries of one of the parts that each head has in a tensor, else 0."""
    match layout:
        case Fixed(length):
            return torch.ones(length)
        case Concatenated(parts):
            return torch.cat([torch.full((p.length,), float(n == part)) for n, p in enumerate(parts)])
        case PerUnit(None, units, inner):
            return (torch.arange(units) == part).float().repeat_interleave(inner.length)
        case PerUnit(_, units, inner):
            return _part_mask(inner, part).repeat(units)


@dataclass(frozen=True)
class MappedTensor:
    """A parameter or saved buffer: the layout of its dimensions, and its layer if it belongs to one."""

    name: str
    dimensions: tuple[Layout, ...]
    layer: int | None

    @property
    def axes(self) -> tuple[frozenset[Axis], ...]:
        """For each dimension, the axes whose sizes change it."""
        return tuple(frozenset(axes_of(dimension)) for dimension in self.dimensions)

    @property
    def module(self) -> str:
        """The name of the module that owns the tensor."""
        return self.name.rpartition(".")[0]

    def has(self, axis: Axis) -> bool:
        """Return whether the axis changes any of the dimensions."""
        return any(axis in axes for axes in self.axes)


@dataclass(frozen=True)
class Coupling:
    """An axis whose size the class ties to that of the axis ``of``: ``size = factor × size of of``."""

    axis: Axis
    of: Axis
    factor: Fraction


@dataclass(frozen=True)
class ResidualStream:
    """The norms of a class on the residual stream, and the matrices that read their outputs."""

    readers: Mapping[str, tuple[str, ...]]
    """From a norm's weight to the matrices that read its output, as wildcard names, each within its layer."""
    offset: float
    """The constant that the norms add to their weights: 0 in most classes, 1 in some."""
    centred: bool = False
    """Whether the norms subtract the mean."""
    unfolded: tuple[str, ...] = ()
    """Weights of norms that no matrix can take over, as wildcard names: of the final norm where the head is
    the embedding table, and of norms that write into the stream. They act along coordinates."""
    bare: tuple[str, ...] = ()
    """Matrices that read the stream without a norm, as wildcard names."""


@dataclass(frozen=True)
class AxisMap:
    """The axis map of one teacher."""

    config: PretrainedConfig
    """The teacher's config, with every size that belongs to an axis set explicitly."""
    fields: Mapping[Axis, tuple[str, ...]]
    """For each axis that config fields set, those fields; a dot leads into a nested config."""
    teacher: Architecture
    """The teacher's own sizes."""
    head_dim: int
    """Entries of a head's output."""
    tensors: tuple[MappedTensor, ...]
    """Every parameter once (a tied one under its first name), then the buffers that are saved."""
    stacks: tuple[str, ...]
    """Prefixes that hold one numbered module per layer, such as ``model.layers.``."""
    kinds: tuple[int, ...]
    """For each layer, the number of its kind; layers of one kind have tensors of the same shapes."""
    roles: TensorRoles
    couplings: tuple[Coupling, ...] = ()
    refused: Mapping[Axis, str] = field(default_factory=dict)
    """Axes that the class has but that are not cut, with the reason."""
    buffers: frozenset[str] = frozenset()
    """The names in ``tensors`` that are buffers, not parameters."""
    scales: Scales = field(default_factory=Scales)
    """Factors that the class derives from sizes, which students compensate for."""
    stream: ResidualStream | None = None
    """How the residual stream is read; None where it cannot be rotated, or need not be."""
    layer_signatures: tuple[LayerSignature, ...] = ()
    """For each layer, what shapes do not show, such as its attention window."""
    multiples: Mapping[Axis, int] = field(default_factory=dict)
    """Of what sizes are multiples, beside what the class needs; the teacher's own size may be any."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that the class has, including coupled and refused ones."""
        return tuple(axis for axis in Axis if self.teacher[axis])

    @property
    def free(self) -> tuple[Axis, ...]:
        """The axes whose sizes may be chosen: neither coupled to another axis nor refused."""
        bound = {coupling.axis for coupling in self.couplings} | set(self.refused)
        return tuple(axis for axis in self.axes if axis not in bound)

    @property
    def sortable(self) -> frozenset[Axis]:
        """The axes whose units may be reordered: those that are cut, alone or with the axis they follow."""
        moving = set(self.free)
        for coupling in self.couplings:
            if coupling.of in moving and coupling.axis not in self.refused:
                moving.add(coupling.axis)
        return frozenset(moving)

    def complete(self, sizes: Mapping[Axis, int]) -> Architecture:
        """Return the architecture with these sizes; coupled axes follow, others keep the teacher's size."""
        whole = {axis: sizes.get(axis, self.teacher[axis]) for axis in Axis}
        for coupling in self.couplings:
            size = whole[coupling.of] * coupling.factor
            assert size.denominator == 1, f"{coupling.of} has to move in steps of {1 / coupling.factor}"
            whole[coupling.axis] = int(size)
        return Architecture(**{axis.value: size for axis, size in whole.items()})


def build(config: PretrainedConfig) -> PreTrainedModel:
    """Build the config's model on the meta device, which allocates no memory; tied weights are tied."""
    with torch.device("meta"), no_init_weights():  # there, what draws weights takes a third of the time
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def layer_modules(model: nn.Module, axis_map: AxisMap) -> list[nn.Module]:
    """Return the decoder layers of a built model, first to last."""
    return [model.get_submodule(f"{axis_map.stacks[0]}{i}") for i in range(axis_map.teacher.layers)]


#: The errors that a model class may raise for sizes that it does not allow.
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
    """Return a tensor's name in the student, or None if the student drops its layer."""
    if tensor.layer is None:
        return tensor.name
    if tensor.layer not in kept:
        return None
    stack = next(stack for stack in axis_map.stacks if tensor.name.startswith(f"{stack}{tensor.layer}."))
    rest = tensor.name.removeprefix(f"{stack}{tensor.layer}")
    return f"{stack}{kept.index(tensor.layer)}{rest}"
