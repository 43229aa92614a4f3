"""Finding every axis of a teacher by asking its class, from the config alone.

The class is built on the meta device, then again with one size after the other doubled
(``space.probing``). A dimension that grew belongs to the doubled axis, and grew by so many entries a
unit: with four more heads, the query projection grows by four times the head size. What shapes cannot
tell, the order inside fused tensors, is left as a list of candidates; ``space.vouching`` finds by
trying which one it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from transformers import PretrainedConfig

from space.architecture import Architecture, Axis
from space.axis_map import AxisMap, Coupling, Tensor
from space.candidates import Part, candidates
from space.families.entries import entry_of
from space.fields import EXPERT_GROUPS, NAMES, WIDTHS, layers_of, named, read
from space.input_error import InputError
from space.layout import Fixed, Layout
from space.likeness import characters, without_numbers
from space.probing import Probes, probe, written_out
from space.scales import Roles, Scales, starred

#: A dimension wherever it occurs: the tensor's name with the layer's number starred, and its place.
Spot = tuple[str, int]
Choices = Mapping[Spot, int]


class Tie(StrEnum):
    """What moves with hidden in a class without a head size of its own, where hidden = heads × head size."""

    HEADS = "heads"
    HEAD_DIM = "head_dim"
    NOTHING = "nothing"
    """The class has a head size, and it is cut too: possible where positions leave heads alone."""


_NUMBERED = re.compile(r"^(?P<stack>.*?\.)(?P<layer>\d+)\.(?P<rest>.+)$")
_MLPS = (Axis.MLP, Axis.EXPERT_MLP, Axis.SHARED_MLP)


@dataclass
class Sizes:
    """What is known of the axes while the map is drawn."""

    units: dict[Axis, int]
    couplings: list[Coupling]
    refused: dict[Axis, str]
    fields: dict[Axis, tuple[str, ...]]
    groups: int
    head_dim: int


@dataclass(frozen=True)
class Draft:
    """A map with the dimensions that shapes leave open."""

    axis_map: AxisMap
    open: dict[Spot, tuple[Layout, ...]]
    """The layouts that each doubtful dimension may have; ``axis_map`` has the first or the chosen one."""


def spot_of(name: str, place: int) -> Spot:
    """A dimension's place, the same in all layers."""
    return starred(name), place


def discover(
    config: PretrainedConfig,
    choices: Choices | None = None,
    attention: frozenset[str] = frozenset(),
    tie: Tie | None = None,
) -> Draft:
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
    return drawn(probed(config, tie), choices, attention, tie)


def drawn(
    probes: Probes,
    choices: Choices | None = None,
    attention: frozenset[str] = frozenset(),
    tie: Tie | None = None,
) -> Draft:
    """Draw a map from what probing found; the arguments are those of ``discover``."""
    stacks = _stacks(probes)
    sizes = _sizes(probes, attention, tie)
    opened: dict[Spot, tuple[Layout, ...]] = {}
    tensors = []
    for name, shape in probes.whole.shapes.items():
        dimensions = []
        for place, length in enumerate(shape):
            parts = _parts(probes, sizes, attention, name, place)
            found = candidates(length, parts, sizes.units, sizes.groups, sizes.head_dim)
            spot = spot_of(name, place)
            if not found:
                for part in parts:
                    sizes.refused.setdefault(part.axis, f"{spot[0]} moves with it in an unknown way")
                found = (Fixed(length),)
            if len(found) > 1:
                opened[spot] = found
            choice = (choices or {}).get(spot, 0)
            dimensions.append(found[choice if choice < len(found) else 0])
        tensors.append(Tensor(name, tuple(dimensions), _layer(name, stacks)))
    return Draft(_map(probes, sizes, tuple(tensors), stacks), opened)


def probed(config: PretrainedConfig, tie: Tie | None) -> Probes:
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
        if named(config, NAMES[axis]) is None and not (axis is Axis.LAYERS and layers_of(config)):
            raise InputError(
                "The config of a teacher has to name its sizes",
                f"in {config.model_type!r}, no known field gives {axis}",
                "Choose another teacher with --model",
            )
    full = written_out(config)
    probes = probe(full, coupled=tie in (Tie.HEADS, Tie.HEAD_DIM))
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


def _sizes(probes: Probes, attention: frozenset[str], tie: Tie | None) -> Sizes:
    units = {axis: probes.sizes[axis] for axis in (Axis.HIDDEN, Axis.HEADS, Axis.LAYERS)}
    fields = {axis: (probes.fields[axis],) for axis in units if axis in probes.fields}
    fields[Axis.HIDDEN] += probes.alike
    groups = next((size for name in EXPERT_GROUPS if (size := read(probes.base, name))), None) or 1
    head_dim = probes.sizes.get(Axis.HEAD_DIM) or units[Axis.HIDDEN] // units[Axis.HEADS]
    if probes.coupled:
        head_dim = units[Axis.HIDDEN] // units[Axis.HEADS]
    sizes = Sizes(units, [], {}, fields, int(groups), int(head_dim))
    if probes.coupled and tie is Tie.HEAD_DIM:
        units[Axis.HEAD_DIM] = sizes.head_dim
        sizes.couplings.append(Coupling(Axis.HEAD_DIM, Axis.HIDDEN, Fraction(1, units[Axis.HEADS])))
        sizes.refused[Axis.HEADS] = "hidden moves with the size of its heads instead"
        fields.pop(Axis.HEADS)
    elif tie is Tie.NOTHING and Axis.HEAD_DIM in probes.fields:
        units[Axis.HEAD_DIM], fields[Axis.HEAD_DIM] = sizes.head_dim, (probes.fields[Axis.HEAD_DIM],)
    elif probes.coupled:
        sizes.couplings.append(Coupling(Axis.HEADS, Axis.HIDDEN, Fraction(1, sizes.head_dim)))
    _kv_heads(probes, sizes)
    if _moved_anywhere(probes, Axis.EXPERTS):
        units[Axis.EXPERTS] = probes.sizes[Axis.EXPERTS]
        fields[Axis.EXPERTS] = (probes.fields[Axis.EXPERTS],)
    _mlps(probes, sizes, attention)
    for axis, key in ((Axis.HIDDEN, Axis.HIDDEN), (Axis.HEADS, Axis.HEADS), (Axis.EXPERTS, Axis.EXPERTS)):
        if key in probes.failed and axis in units:
            sizes.refused[axis] = probes.failed[key]
    return sizes


def _kv_heads(probes: Probes, sizes: Sizes) -> None:
    """KV heads have a field of their own that moves something, or there is one for all, or one a head."""
    field = probes.fields.get(Axis.KV_HEADS)
    if field and _moved_anywhere(probes, Axis.KV_HEADS):
        sizes.units[Axis.KV_HEADS], sizes.fields[Axis.KV_HEADS] = probes.sizes[Axis.KV_HEADS], (field,)
        return
    if field and field in probes.failed:
        sizes.refused[Axis.KV_HEADS] = probes.failed[field]
    key = Axis.HIDDEN if probes.coupled else Axis.HEADS
    rests = {
        length - moved
        for name, shape in probes.whole.shapes.items()
        for place, length in enumerate(shape)
        if 0 < (moved := probes.moved(key, name, place)) < length
    }
    if 2 * sizes.head_dim in rests:
        sizes.units[Axis.KV_HEADS] = 1
        sizes.refused[Axis.KV_HEADS] = "all heads share one"
        return
    sizes.units[Axis.KV_HEADS] = sizes.units[Axis.HEADS]
    if field and read(probes.base, field) == sizes.units[Axis.HEADS]:
        sizes.fields[Axis.KV_HEADS] = (field,)
    sizes.couplings.append(Coupling(Axis.KV_HEADS, Axis.HEADS, Fraction(1)))


def _moved_anywhere(probes: Probes, key: Axis | str) -> bool:
    return any(map(any, probes.growth.get(key, {}).values()))


def _mlps(probes: Probes, sizes: Sizes, attention: frozenset[str]) -> None:
    """Which axis each width field sets: shapes tell dense layers, experts and shared experts apart."""
    natural: dict[tuple[str, Axis], int] = {}
    for name in WIDTHS:
        field = named(probes.base, (name,))
        for tensor, shape in probes.whole.shapes.items() if field else ():
            for place, length in enumerate(shape):
                if probes.moved(str(field), tensor, place):
                    if probes.moved(Axis.EXPERTS, tensor, place) == length:
                        length //= probes.sizes[Axis.EXPERTS]
                    key = str(field), _mlp_axis(probes, tensor)
                    natural[key] = min(length, natural.get(key, length))
    if not natural and probes.coupled:
        _mlp_of_hidden(probes, sizes, attention)
    for axis in _MLPS:
        setters = {field: length for (field, of), length in natural.items() if of is axis}
        if not setters:
            continue
        field, sizes.units[axis] = next(iter(setters.items()))
        if len(setters) > 1:
            sizes.refused[axis] = f"set by {' and '.join(setters)}, layer by layer"
            continue
        leader = next(of for of in (Axis.EXPERT_MLP, Axis.MLP, Axis.SHARED_MLP) if (field, of) in natural)
        if leader is axis:
            sizes.fields[axis] = (field,)
            if read(probes.base, field) != sizes.units[axis]:
                sizes.refused[axis] = f"{field} is not its size"
        else:
            factor = Fraction(sizes.units[axis], natural[field, leader])
            sizes.couplings.append(Coupling(axis, leader, factor))


def _mlp_axis(probes: Probes, tensor: str) -> Axis:
    if any(probes.moved(Axis.EXPERTS, tensor, place) for place in range(len(probes.whole.shapes[tensor]))):
        return Axis.EXPERT_MLP
    layer = re.match(r"^.*?\.\d+\.", tensor)
    mixture = layer and any(
        name.startswith(layer[0]) and any(growth)
        for name, growth in probes.growth.get(Axis.EXPERTS, {}).items()
    )
    return Axis.SHARED_MLP if mixture else Axis.MLP


def _mlp_of_hidden(probes: Probes, sizes: Sizes, attention: frozenset[str]) -> None:
    """A class without a field for the MLP makes it a multiple of hidden."""
    hidden = sizes.units[Axis.HIDDEN]
    multiples = {
        length // hidden
        for name, shape in probes.whole.shapes.items()
        for place, length in enumerate(shape)
        if probes.moved(Axis.HIDDEN, name, place) == length
        and length % hidden == 0
        and length > hidden
        and len(shape) == 2
        and not _in_attention(name, attention)
    }
    if len(multiples) == 1:
        factor = multiples.pop()
        sizes.units[Axis.MLP] = factor * hidden
        sizes.couplings.append(Coupling(Axis.MLP, Axis.HIDDEN, Fraction(factor)))


def _in_attention(name: str, attention: frozenset[str]) -> bool:
    starred = spot_of(name, 0)[0]
    return any(starred.startswith(module.rpartition(".")[0] + ".") for module in attention)


def _parts(
    probes: Probes, sizes: Sizes, attention: frozenset[str], name: str, place: int
) -> tuple[Part, ...]:
    """How many entries of a dimension each axis moves."""
    parts = []
    for key in probes.growth:
        if key is Axis.HEAD_DIM or not (moved := probes.moved(key, name, place)):
            continue
        if key is Axis.HIDDEN and probes.coupled:
            axis = _coupled_axis(probes, sizes, attention, name, place)
        else:
            axis = key if isinstance(key, Axis) else _mlp_axis(probes, name)
        parts.append(Part(axis, moved))
    if not parts and Axis.HEAD_DIM in sizes.units and (moved := probes.moved(Axis.HEAD_DIM, name, place)):
        parts.append(Part(Axis.HEAD_DIM, moved))
    return tuple(parts)


def _coupled_axis(
    probes: Probes, sizes: Sizes, attention: frozenset[str], name: str, place: int
) -> Axis:
    """Hidden, heads or MLP, where all have one length: what leads into the module that mixes tokens is heads."""
    shape = probes.whole.shapes[name]
    starred = spot_of(name, 0)[0]
    owner, _, kind = starred.rpartition(".")
    if owner in attention:
        return Axis.HEADS if len(shape) == 2 and place == _input_place(probes, owner) else Axis.HIDDEN
    if _in_attention(name, attention):
        matrix = len(shape) == 2
        return Axis.HIDDEN if matrix and place == _input_place(probes, owner) else Axis.HEADS
    mlp = sizes.units.get(Axis.MLP, 0)
    follows = any(c.axis is Axis.MLP and c.of is Axis.HIDDEN for c in sizes.couplings)
    return Axis.MLP if follows and shape[place] == mlp and mlp != sizes.units[Axis.HIDDEN] else Axis.HIDDEN


def _input_place(probes: Probes, owner: str) -> int:
    """The dimension of a module's weight that its input runs along: 1, or 0 for GPT-2's transposed layers."""
    numbered = owner.replace("*", "0")
    return 0 if (numbered, "nf") in probes.whole.scalars else 1


def _map(probes: Probes, sizes: Sizes, tensors: tuple[Tensor, ...], stacks: tuple[str, ...]) -> AxisMap:
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
        if tensor.layer is None and tensor.axes == (frozenset({Axis.HIDDEN}),) and tensor.name.endswith("weight")
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
        scales=Scales(rescaled=entry_of(probes.base.model_type).rescaled),
        roles=Roles(
            probes.whole.embedding,
            probes.whole.head,
            norms[-1] if norms else None,
            bias if bias in probes.whole.shapes else None,
        ),
        couplings=tuple(sizes.couplings),
        refused=sizes.refused,
        buffers=frozenset(probes.whole.shapes) - probes.whole.parameters,
        characters=without_numbers(characters(lasting, stacks, teacher.layers)),
    )
