"""Discover which dimension of which tensor belongs to which axis, from a teacher's config alone.

The model class is built on the meta device, and again with each size field doubled in turn
(``space.discovery.probing``). A dimension that grew belongs to the axis of that field; the growth gives the
entries per unit. With four more heads, for example, the query projection grows by four times the head size.
Shapes do not show the order inside fused tensors. There, discovery lists candidate layouts, and
``space.verification`` finds the right one by experiment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, MappedTensor, Scales, TensorRoles, wildcard_name
from space.axes.config_fields import NAMES, first_field_of, layers_of, own_fields_of_layers
from space.axes.layers import layer_signatures, without_layer_numbers
from space.axes.layout import Concatenated, Fixed, Layout, MovedPart, candidate_layouts
from space.discovery.families import family_entry
from space.discovery.probing import Probes, probe, with_explicit_sizes
from space.discovery.sizing import HEAD_SIZES, AxisSizes, HiddenTie, axis_sizes, in_attention, mlp_axis
from space.input_error import InputError

#: A dimension in all layers: the tensor's name, with ``*`` for the layer's number, and the dimension's index.
Dimension = tuple[str, int]
#: The index of the candidate layout to use, for ambiguous dimensions.
Choices = Mapping[Dimension, int]
_NUMBERED = re.compile(r"^(?P<stack>.*?\.)(?P<layer>\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True)
class DraftMap:
    """An axis map, and the dimensions whose layout the shapes leave open."""

    axis_map: AxisMap
    open: dict[Dimension, tuple[Layout, ...]]
    """The candidate layouts of each ambiguous dimension; ``axis_map`` has the chosen or the first one."""


def discover(
    config: PretrainedConfig,
    choices: Choices | None = None,
    attention: frozenset[str] = frozenset(),
    tie: HiddenTie | None = None,
) -> DraftMap:
    """Build the axis map of a teacher.

    Args:
        config: the config of the teacher.
        choices: the index of the candidate layout to use for each ambiguous dimension; the first by default.
        attention: names (``*`` for layer numbers) of the modules whose input mixes tokens; needed for classes
            without a head size field, in which hidden and heads have the same length.
        tie: what changes with hidden; by default nothing, or heads where the class has no head size field.

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
    """Build a map from the results of probing; the other arguments are those of ``discover``."""
    stacks = _stacks(probes)
    sizes = axis_sizes(probes, attention, tie)
    open_dimensions: dict[Dimension, tuple[Layout, ...]] = {}
    tensors = []
    for name, shape in probes.whole.shapes.items():
        dimensions = []
        for place, length in enumerate(shape):
            parts = _moved_parts(probes, sizes, attention, name, place)
            found = candidate_layouts(length, parts, sizes.units, sizes.groups, sizes.head_dim)
            key = wildcard_name(name), place
            if own_fields_of_layers(probes.base):  # heads are not cut, so how they lie makes no difference
                found = tuple(layout for layout in found if not isinstance(layout, Concatenated)) or found
            if not found:
                for part in parts:
                    sizes.refused.setdefault(part.axis, f"{key[0]} moves with it in an unknown way")
                found = (Fixed(length),)
            if len(found) > 1:
                open_dimensions[key] = found
            choice = (choices or {}).get(key, 0)
            dimensions.append(found[choice if choice < len(found) else 0])
        tensors.append(MappedTensor(name, tuple(dimensions), _layer(name, stacks)))
    return DraftMap(_map(probes, sizes, tuple(tensors), stacks), open_dimensions)


def probe_sizes(config: PretrainedConfig, tie: HiddenTie | None) -> Probes:
    """Double every size field of a config in turn and record which dimensions grow.

    Raises:
        InputError: the class does not build, or a needed size has no field.
    """
    own = (config.to_dict().get("per_layer_config") or {}).values()
    if any(sizes.keys() - HEAD_SIZES for sizes in own):
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
    """Return the prefixes of numbered module lists that have exactly one entry per layer."""
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


def _moved_parts(
    probes: Probes, sizes: AxisSizes, attention: frozenset[str], name: str, place: int
) -> tuple[MovedPart, ...]:
    """Return by how many entries each axis changes a dimension when its size is doubled."""
    parts = []
    for key in probes.growth:
        if key is Axis.HEAD_DIM or not (moved := probes.moved(key, name, place)):
            continue
        if key is Axis.HIDDEN and probes.coupled:
            axis = _axis_of_coupled(probes, sizes, attention, name, place)
        else:
            axis = key if isinstance(key, Axis) else mlp_axis(probes, name)
        parts.append(MovedPart(axis, moved))
    if not parts and Axis.HEAD_DIM in sizes.units and (moved := probes.moved(Axis.HEAD_DIM, name, place)):
        parts.append(MovedPart(Axis.HEAD_DIM, moved))
    return tuple(parts)


def _axis_of_coupled(
    probes: Probes, sizes: AxisSizes, attention: frozenset[str], name: str, place: int
) -> Axis:
    """Tell hidden, heads and MLP apart where their lengths agree: attention output projections read heads."""
    shape = probes.whole.shapes[name]
    owner = wildcard_name(name).rpartition(".")[0]
    if owner in attention:
        return Axis.HEADS if len(shape) == 2 and place == _input_dimension(probes, owner) else Axis.HIDDEN
    if in_attention(name, attention):
        matrix = len(shape) == 2
        return Axis.HIDDEN if matrix and place == _input_dimension(probes, owner) else Axis.HEADS
    mlp = sizes.units.get(Axis.MLP, 0)
    follows = any(c.axis is Axis.MLP and c.of is Axis.HIDDEN for c in sizes.couplings)
    return Axis.MLP if follows and shape[place] == mlp and mlp != sizes.units[Axis.HIDDEN] else Axis.HIDDEN


def _input_dimension(probes: Probes, owner: str) -> int:
    """Return the input dimension of a module's weight: 1, or 0 for GPT-2's transposed ``Conv1D``."""
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
        layer_signatures=without_layer_numbers(layer_signatures(lasting, stacks, teacher.layers)),
    )
