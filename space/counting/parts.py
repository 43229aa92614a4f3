"""Which part of a model every parameter belongs to, and which modules do that part's work; no family named.

The map says which axes move a tensor: heads tell attention, neurons the MLP, experts the mixture. A module
below a layer whose tensors speak of one part belongs to it whole, so that the norms of queries and keys are
attention's, and biases go with their matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import nn
from transformers import PreTrainedModel

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor, student_name


class Part(StrEnum):
    """A part of a model."""

    EMBEDDINGS = "embeddings"
    """Tables of tokens and positions; the output head too where it is tied to them."""
    ATTENTION = "attention"
    MLP = "mlp"
    """Shared experts among them."""
    EXPERTS = "experts"
    """Routed ones, and their router."""
    OTHER = "other"
    """Matrices without heads, neurons or experts: state spaces, convolutions, adapters."""
    NORMS = "norms"
    """And what else is a vector, outside of the above."""
    HEAD = "head"


_OF_AXIS = {
    Axis.EXPERTS: Part.EXPERTS,
    Axis.EXPERT_MLP: Part.EXPERTS,
    Axis.HEADS: Part.ATTENTION,
    Axis.KV_HEADS: Part.ATTENTION,
    Axis.HEAD_DIM: Part.ATTENTION,
    Axis.MLP: Part.MLP,
    Axis.SHARED_MLP: Part.MLP,
}
_FEED_FORWARD = {Part.MLP, Part.EXPERTS}


@dataclass(frozen=True)
class Parts:
    """The parts of one built model."""

    parameters: Mapping[str, Part]
    """Of every parameter, by its name; a tied one under its first."""
    modules: Mapping[str, Part]
    """Modules that are called and work for one part; none lies within another, norms are left out."""


def parts_of(model: PreTrainedModel, axis_map: AxisMap, kept: Sequence[int]) -> Parts:
    """The parts of a teacher or of a student.

    Args:
        model: as transformers loads it.
        axis_map: the teacher's.
        kept: the teacher's layers that the model has, ascending.
    """
    told = _told(model, axis_map, kept)
    parameters: dict[str, Part] = {}
    modules: dict[str, Part] = {}
    for name, module, part in _blocks(model, "", told, axis_map.stacks):
        for parameter in _names(name, module, told):
            parameters.setdefault(parameter, told[parameter] or part)
        if part is not Part.NORMS and not isinstance(module, nn.ModuleList):
            modules[name] = part
    for parameter, values in model.named_parameters():
        loose = Part.NORMS if values.ndim < 2 else Part.OTHER
        parameters.setdefault(parameter, told[parameter] or loose)
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head and head is not None]
    return Parts(parameters, modules | dict.fromkeys(names, Part.HEAD))


def _told(model: PreTrainedModel, axis_map: AxisMap, kept: Sequence[int]) -> dict[str, Part | None]:
    """What each parameter says of itself: by its use, or by the axes that move it."""
    axes = {student_name(tensor, axis_map, kept): _by_axes(tensor) for tensor in axis_map.tensors}
    told = {name: axes.get(name) for name, _ in model.named_parameters()}
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    head = model.get_output_embeddings()
    for parameter in head.parameters() if head is not None else ():
        told[first[id(parameter)]] = Part.HEAD
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            told[first[id(module.weight)]] = Part.EMBEDDINGS
    return told


def _by_axes(tensor: MappedTensor) -> Part | None:
    return next((part for axis, part in _OF_AXIS.items() if tensor.has(axis)), None)


def _blocks(
    module: nn.Module, name: str, told: Mapping[str, Part | None], stacks: Sequence[str]
) -> Iterator[tuple[str, nn.Module, Part]]:
    """The largest modules below the layers that belong to one part, and those beside the layers."""
    below = _names(name, module, told)
    found = {part for parameter in below if (part := told[parameter]) is not None}
    one = len(found) < 2 or found == _FEED_FORWARD
    if below and one and not _holds_layers(name, stacks) and not isinstance(module, nn.ModuleList):
        yield name, module, _joint(found, module)
        return
    for child, inner in module.named_children():
        yield from _blocks(inner, f"{name}.{child}" if name else child, told, stacks)


def _joint(found: set[Part], module: nn.Module) -> Part:
    if found:
        return Part.EXPERTS if Part.EXPERTS in found else next(iter(found))
    vectors = all(parameter.ndim < 2 for parameter in module.parameters())
    return Part.NORMS if vectors else Part.OTHER


def _holds_layers(name: str, stacks: Sequence[str]) -> bool:
    """Whether a module is a layer or lies above one."""
    for stack in stacks:
        inside = name.removeprefix(stack)
        if f"{stack}".startswith(f"{name}." if name else "") or (inside != name and inside.isdigit()):
            return True
    return False


def _names(name: str, module: nn.Module, told: Mapping[str, Part | None]) -> list[str]:
    """The parameters below a module, those apart that another module has under their first name."""
    prefix = f"{name}." if name else ""
    return [full for own, _ in module.named_parameters() if (full := prefix + own) in told]
