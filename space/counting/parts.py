"""The breakdown of a model into parts: which part every parameter and module belongs to, in any family.

The axes of a tensor show its part: heads mean attention, neurons the MLP, experts the mixture. If all
tensors with an axis below a module belong to one part, the whole module does: the norms of queries and keys
count as attention, and biases go with their matrices.
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
    """Token and position embeddings, including the output head where it is tied to them."""
    ATTENTION = "attention"
    MLP = "mlp"
    """Includes shared experts."""
    EXPERTS = "experts"
    """Routed experts and their router."""
    OTHER = "other"
    """Matrices without heads, neurons or experts: state spaces, convolutions, adapters."""
    NORMS = "norms"
    """Includes all other vectors outside the parts above."""
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
    """The part of every parameter, by name; a tied parameter under its first name."""
    modules: Mapping[str, Part]
    """Modules that compute one part, norms left out; none of them lies within another."""


def parts_of(model: PreTrainedModel, axis_map: AxisMap, kept: Sequence[int]) -> Parts:
    """Assign the parameters and modules of a teacher or student to parts.

    Args:
        model: as loaded by transformers.
        axis_map: the teacher's.
        kept: the teacher's layers that the model has, ascending.
    """
    known = _known_parts(model, axis_map, kept)
    parameters: dict[str, Part] = {}
    modules: dict[str, Part] = {}
    for name, module, part in _blocks(model, "", known, axis_map.stacks):
        for parameter in _names(name, module, known):
            parameters.setdefault(parameter, known[parameter] or part)
        if part is not Part.NORMS and not isinstance(module, nn.ModuleList):
            modules[name] = part
    for parameter, values in model.named_parameters():
        loose = Part.NORMS if values.ndim < 2 else Part.OTHER
        parameters.setdefault(parameter, known[parameter] or loose)
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head and head is not None]
    return Parts(parameters, modules | dict.fromkeys(names, Part.HEAD))


def _known_parts(model: PreTrainedModel, axis_map: AxisMap, kept: Sequence[int]) -> dict[str, Part | None]:
    """Return the part of each parameter that its use or its axes reveal, else None."""
    axes = {student_name(tensor, axis_map, kept): _by_axes(tensor) for tensor in axis_map.tensors}
    known = {name: axes.get(name) for name, _ in model.named_parameters()}
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    head = model.get_output_embeddings()
    for parameter in head.parameters() if head is not None else ():
        known[first[id(parameter)]] = Part.HEAD
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            known[first[id(module.weight)]] = Part.EMBEDDINGS
    return known


def _by_axes(tensor: MappedTensor) -> Part | None:
    return next((part for axis, part in _OF_AXIS.items() if tensor.has(axis)), None)


def _blocks(
    module: nn.Module, name: str, known: Mapping[str, Part | None], stacks: Sequence[str]
) -> Iterator[tuple[str, nn.Module, Part]]:
    """Yield the largest modules that belong to one part, within the layers and beside them."""
    below = _names(name, module, known)
    found = {part for parameter in below if (part := known[parameter]) is not None}
    one = len(found) < 2 or found == _FEED_FORWARD
    if below and one and not _holds_layers(name, stacks) and not isinstance(module, nn.ModuleList):
        yield name, module, _joint(found, module)
        return
    for child, inner in module.named_children():
        yield from _blocks(inner, f"{name}.{child}" if name else child, known, stacks)


def _joint(found: set[Part], module: nn.Module) -> Part:
    if found:
        return Part.EXPERTS if Part.EXPERTS in found else next(iter(found))
    vectors = all(parameter.ndim < 2 for parameter in module.parameters())
    return Part.NORMS if vectors else Part.OTHER


def _holds_layers(name: str, stacks: Sequence[str]) -> bool:
    """Return whether a module is a layer or contains one."""
    for stack in stacks:
        inside = name.removeprefix(stack)
        if f"{stack}".startswith(f"{name}." if name else "") or (inside != name and inside.isdigit()):
            return True
    return False


def _names(name: str, module: nn.Module, known: Mapping[str, Part | None]) -> list[str]:
    """List the parameters below a module, except tied ones whose first name belongs to another module."""
    prefix = f"{name}." if name else ""
    return [full for own, _ in module.named_parameters() if (full := prefix + own) in known]
