"""Finding every axis of a teacher by asking its class, from the config alone.

The class is built on the meta device, then again with one size after the other doubled
(``probing``). A dimension that grew belongs to the doubled axis, and grew by so many entries a
unit: with four more heads, the query projection grows by four times the head size. What shapes cannot
tell, the order inside fused tensors, is left as a list of candidates; ``space.verification`` finds by
trying which one it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, MappedTensor, Scales, TensorRoles, wildcard_name
from space.axes.config_fields import NAMES, first_field_of, layers_of
from space.axes.layers import layer_signatures, without_layer_numbers
from space.axes.layout import Fixed, Layout, MovedPart, candidate_layouts
from space.discovery.families import family_entry
from space.discovery.probing import Probes, probe, with_explicit_sizes
from space.discovery.sizing import AxisSizes, HiddenTie, axis_sizes, in_attention, mlp_axis
from space.input_error import InputError

#: A dimension wherever it occurs: the tensor's name with the layer's number starred, and its place.
Spot = tuple[str, int]
Choices = Mapping[Spot, int]
_NUMBERED = re.compile(r"^(?P<stack>.*?\.)(?P<layer>\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True)
class DraftMap:
    """A map with the dimensions that shapes leave open."""

    axis_map: AxisMap
    open: dict[Spot, tuple[Layout, ...]]
    """The layouts that each doubtful dimension may have; ``axis_map`` has the first or the chosen one."""


def discover(
    config: PretrainedConfig,
    choices: Choices | None = None,
    attention: frozenset[str] = frozenset(),
    tie: HiddenTie | None = None,
) -> DraftMap:
    """Draw the map of a teacher.

    Args:
        config: the teacher's.
        choices: for each doubtful dimension, which of its candidates holds; the first by default.
        attention: names (numbers starred) of the modules whose input mixes tokens; needed for classes
            without a head size of their own, in which hidden and heads have the same length.
        tie: what moves with hidden; by default nothing, or heads where the class has no head size.

    Raises:
        InputError: the class does not build, or a needed size has no field.
    """
    return map_from_probes(probe_sizes(config, tie), choices, attention, tie)


def map_from_probes(
    probes: Probes,
    choices: Choices | None = None,
    attention: frozenset[str] = frozenset(),
    tie: HiddenTie | None = None,
) -> DraftMap:
    """Draw a map from what probing found; the arguments are those of ``discover``."""
    stacks = _stacks(probes)
    sizes = axis_sizes(probes, attention, tie)
    opened: dict[Spot, tuple[Layout, ...]] = {}
    tensors = []
    for name, shape in probes.whole.shapes.items():
        dimensions = []
        for place, length in enumerate(shape):
            parts = _parts(probes, sizes, attention, name, place)
            found = candidate_layouts(length, parts, sizes.units, sizes.groups, sizes.head_dim)
            spot = wildcard_name(name), place
            if not found:
                for part in parts:
                    sizes.refused.setdefault(part.axis, f"{spot[0]} moves with it in an unknown way")
                found = (Fixed(length),)
            if len(found) > 1:
                opened[spot] = found
            choice = (choices or {}).get(spot, 0)
            dimensions.append(found[choice if choice < len(found) else 0])
        tensors.append(MappedTensor(name, tuple(dimensions), _layer(name, stacks)))
    return DraftMap(_map(probes, sizes, tuple(tensors), stacks), opened)


def probe_sizes(config: PretrainedConfig, tie: HiddenTie | None) -> Probes:
    """Double every size of a config and note what moves.

    Raises:
        InputError: the class does not build, or a needed size has no field.
    """
    if getattr(config, "is_heterogeneous", False):
        raise InputError(
            "The layers of a teacher have to be alike in size",
            f"those of this {config.model_type!r} have sizes of their own",
            "Choose another teacher with --model",
        )
    for axis in (Axis.HIDDEN, Axis.HEADS, Axis.LAYERS):
        if first_field_of(config, NAMES[axis]) is None and not (axis is Axis.LAYERS and layers_of(config)):
            raise InputError(
                "The config of a teacher has to name its sizes",
                f"in {config.model_type!r}, no known field gives {axis}",
                "Choose another teacher with --model",
            )
    full = with_explicit_sizes(config)
    probes = probe(full, coupled=tie in (HiddenTie.HEADS, HiddenTie.HEAD_DIM))
    if probes.coupled and "head_dim" not in config.to_dict():
        bare = full.to_dict()
        bare.pop("head_dim", None)
        probes.base = type(full)(**{k: v for k, v in bare.items() if k not in ("model_type",)})
        probes.fields.pop(Axis.HEAD_DIM, None)
    return probes


def _stacks(probes: Probes) -> tuple[str, ...]:
    """The prefixes under which exactly as many numbered groups of tensors lie as there are layers."""
    numbers: dict[str, set[int]] = {}
    for name in probes.whole.shapes:
        if match := _NUMBERED.match(name):
            numbers.setdefault(match["stack"], set()).add(int(match["layer"]))
    layers = set(range(probes.sizes[Axis.LAYERS]))
    stacks = tuple(stack for stack, found in numbers.items() if found == layers)
    if not stacks:
        raise InputError(
            "The layers of a teacher have to lie in one numbered list",
            f"in {probes.base.model_type!r}, no list of {len(layers)} was found",
            "Choose another teacher with --model",
        )
    return stacks


def _layer(name: str, stacks: Sequence[str]) -> int | None:
    match = _NUMBERED.match(name)
    return int(match["layer"]) if match and match["stack"] in stacks else None


def _parts(
    probes: Probes, sizes: AxisSizes, attention: frozenset[str], name: str, place: int
) -> tuple[MovedPart, ...]:
    """How many entries of a dimension each axis moves."""
    parts = []
    for key in probes.growth:
        if key is Axis.HEAD_DIM or not (moved := probes.moved(key, name, place)):
            continue
        if key is Axis.HIDDEN and probes.coupled:
            axis = _coupled_axis(probes, sizes, attention, name, place)
        else:
            axis = key if isinstance(key, Axis) else mlp_axis(probes, name)
        parts.append(MovedPart(axis, moved))
    if not parts and Axis.HEAD_DIM in sizes.units and (moved := probes.moved(Axis.HEAD_DIM, name, place)):
        parts.append(MovedPart(Axis.HEAD_DIM, moved))
    return tuple(parts)


def _coupled_axis(probes: Probes, sizes: AxisSizes, attention: frozenset[str], name: str, place: int) -> Axis:
    """Hidden, heads or MLP, where all have one length: what leads out of attention reads heads."""
    shape = probes.whole.shapes[name]
    owner = wildcard_name(name).rpartition(".")[0]
    if owner in attention:
        return Axis.HEADS if len(shape) == 2 and place == _input_place(probes, owner) else Axis.HIDDEN
    if in_attention(name, attention):
        matrix = len(shape) == 2
        return Axis.HIDDEN if matrix and place == _input_place(probes, owner) else Axis.HEADS
    mlp = sizes.units.get(Axis.MLP, 0)
    follows = any(c.axis is Axis.MLP and c.of is Axis.HIDDEN for c in sizes.couplings)
    return Axis.MLP if follows and shape[place] == mlp and mlp != sizes.units[Axis.HIDDEN] else Axis.HIDDEN


def _input_place(probes: Probes, owner: str) -> int:
    """The dimension of a module's weight that its input runs along: 1, or 0 for GPT-2's transposed layers."""
    numbered = owner.replace("*", "0")
    return 0 if (numbered, "nf") in probes.whole.scalars else 1


def _map(
    probes: Probes, sizes: AxisSizes, tensors: tuple[MappedTensor, ...], stacks: tuple[str, ...]
) -> AxisMap:
    by_layer: dict[int, list[object]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            rest = tensor.name.replace(f".{tensor.layer}.", ".*.", 1)
            by_layer.setdefault(tensor.layer, []).append((rest, tensor.dimensions))
    shapes = [tuple(by_layer[layer]) for layer in sorted(by_layer)]
    kinds = tuple(shapes.index(shape) for shape in shapes)
    names = sorted(set(kinds))
    norms = [
        tensor.name
        for tensor in tensors
        if tensor.layer is None
        and tensor.axes == (frozenset({Axis.HIDDEN}),)
        and tensor.name.endswith("weight")
    ]
    teacher = Architecture(**{axis.value: sizes.units.get(axis, 0) for axis in Axis})
    lasting = {at: value for at, value in probes.whole.scalars.items() if at not in probes.moving}
    bias = norms[-1].removesuffix("weight") + "bias" if norms else ""
    return AxisMap(
        config=probes.base,
        fields=sizes.fields,
        teacher=teacher,
        head_dim=sizes.head_dim,
        tensors=tensors,
        stacks=stacks,
        kinds=tuple(names.index(kind) for kind in kinds),
        scales=Scales(rescaled=family_entry(probes.base.model_type).rescaled),
        roles=TensorRoles(
            probes.whole.embedding,
            probes.whole.head,
            norms[-1] if norms else None,
            bias if bias in probes.whole.shapes else None,
        ),
        couplings=tuple(sizes.couplings),
        refused=sizes.refused,
        buffers=frozenset(probes.whole.shapes) - probes.whole.parameters,
        characters=without_layer_numbers(layer_signatures(lasting, stacks, teacher.layers)),
    )
