"""Derive the axes of a class from the probes: their sizes in a teacher, config fields and couplings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from space.axes.architecture import Axis
from space.axes.axis_map import Coupling, wildcard_name
from space.axes.config_fields import EXPERT_GROUPS, WIDTHS, first_field_of, own_fields_of_layers, read_field
from space.discovery.probing import Probes

#: Fields of which layers may have values of their own: their heads are then left as they are.
HEAD_SIZES = frozenset({"head_dim", "num_key_value_heads"})
_MLPS = (Axis.MLP, Axis.EXPERT_MLP, Axis.SHARED_MLP)


class HiddenTie(StrEnum):
    """What changes with hidden in a class without a head size field, where hidden = heads × head size."""

    HEADS = "heads"
    HEAD_DIM = "head_dim"
    NOTHING = "nothing"
    """The class has a head size field, and head_dim is an axis too: possible without rotary positions."""


@dataclass
class AxisSizes:
    """The axes as far as they are known while the map is built."""

    units: dict[Axis, int]
    couplings: list[Coupling]
    refused: dict[Axis, str]
    fields: dict[Axis, tuple[str, ...]]
    groups: int
    head_dim: int


def axis_sizes(probes: Probes, attention: frozenset[str], tie: HiddenTie | None) -> AxisSizes:
    """Derive the axes, their sizes, fields and couplings from the probes.

    Args:
        probes: the probes of the teacher's config.
        attention: names (``*`` for layer numbers) of the modules whose input mixes tokens.
        tie: what changes with hidden; None if the class has a head size field or heads follow hidden.
    """
    units = {axis: probes.sizes[axis] for axis in (Axis.HIDDEN, Axis.HEADS, Axis.LAYERS)}
    fields: dict[Axis, tuple[str, ...]] = {
        axis: (probes.fields[axis],) for axis in units if axis in probes.fields
    }
    fields[Axis.HIDDEN] += probes.alike
    groups = next((size for name in EXPERT_GROUPS if (size := read_field(probes.base, name))), None) or 1
    head_dim = probes.sizes.get(Axis.HEAD_DIM) or units[Axis.HIDDEN] // units[Axis.HEADS]
    if probes.coupled:
        head_dim = units[Axis.HIDDEN] // units[Axis.HEADS]
    sizes = AxisSizes(units, [], {}, fields, int(groups), int(head_dim))
    if own_fields_of_layers(probes.base):
        sizes.refused |= dict.fromkeys((Axis.HEADS, Axis.KV_HEADS), "layers have heads of their own sizes")
    if probes.coupled and tie is HiddenTie.HEAD_DIM:
        units[Axis.HEAD_DIM] = sizes.head_dim
        sizes.couplings.append(Coupling(Axis.HEAD_DIM, Axis.HIDDEN, Fraction(1, units[Axis.HEADS])))
        sizes.refused[Axis.HEADS] = "hidden moves with the size of its heads instead"
        fields.pop(Axis.HEADS)
    elif tie is HiddenTie.NOTHING and Axis.HEAD_DIM in probes.fields:
        units[Axis.HEAD_DIM], fields[Axis.HEAD_DIM] = sizes.head_dim, (probes.fields[Axis.HEAD_DIM],)
    elif probes.coupled:
        sizes.couplings.append(Coupling(Axis.HEADS, Axis.HIDDEN, Fraction(1, sizes.head_dim)))
    _set_kv_heads(probes, sizes)
    if _moved_anywhere(probes, Axis.EXPERTS):
        units[Axis.EXPERTS] = probes.sizes[Axis.EXPERTS]
        fields[Axis.EXPERTS] = (probes.fields[Axis.EXPERTS],)
    _set_mlps(probes, sizes, attention)
    for axis, key in ((Axis.HIDDEN, Axis.HIDDEN), (Axis.HEADS, Axis.HEADS), (Axis.EXPERTS, Axis.EXPERTS)):
        if key in probes.failed and axis in units:
            sizes.refused[axis] = probes.failed[key]
    return sizes


def _set_kv_heads(probes: Probes, sizes: AxisSizes) -> None:
    """Set the KV heads: a field of their own, or one KV head for all heads, or one for each head."""
    field = probes.fields.get(Axis.KV_HEADS)
    if field and _moved_anywhere(probes, Axis.KV_HEADS):
        sizes.units[Axis.KV_HEADS], sizes.fields[Axis.KV_HEADS] = probes.sizes[Axis.KV_HEADS], (field,)
        return
    if field and Axis.KV_HEADS in probes.failed:
        sizes.units[Axis.KV_HEADS] = probes.sizes[Axis.KV_HEADS]
        sizes.refused[Axis.KV_HEADS] = probes.failed[Axis.KV_HEADS]
        return
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
    if field and read_field(probes.base, field) == sizes.units[Axis.HEADS]:
        sizes.fields[Axis.KV_HEADS] = (field,)
    sizes.couplings.append(Coupling(Axis.KV_HEADS, Axis.HEADS, Fraction(1)))


def _moved_anywhere(probes: Probes, key: Axis | str) -> bool:
    return any(map(any, probes.growth.get(key, {}).values()))


def _set_mlps(probes: Probes, sizes: AxisSizes, attention: frozenset[str]) -> None:
    """Find the axis that each width field sets: the MLP of dense layers, of experts or of shared experts."""
    natural: dict[tuple[str, Axis], int] = {}
    for name in WIDTHS:
        field = first_field_of(probes.base, (name,))
        for tensor, shape in probes.whole.shapes.items() if field else ():
            for place, length in enumerate(shape):
                if probes.moved(str(field), tensor, place):
                    if probes.moved(Axis.EXPERTS, tensor, place) == length:
                        length //= probes.sizes[Axis.EXPERTS]
                    key = str(field), mlp_axis(probes, tensor)
                    natural[key] = min(length, natural.get(key, length))
    if not natural and probes.coupled:
        _couple_mlp_to_hidden(probes, sizes, attention)
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
            if read_field(probes.base, field) != sizes.units[axis]:
                sizes.refused[axis] = f"{field} is not its size"
        else:
            factor = Fraction(sizes.units[axis], natural[field, leader])
            sizes.couplings.append(Coupling(axis, leader, factor))


def mlp_axis(probes: Probes, tensor: str) -> Axis:
    """Return the axis of an MLP tensor's width: that of experts, of the shared expert or of a dense layer."""
    if any(probes.moved(Axis.EXPERTS, tensor, place) for place in range(len(probes.whole.shapes[tensor]))):
        return Axis.EXPERT_MLP
    layer = re.match(r"^.*?\.\d+\.", tensor)
    mixture = layer and any(
        name.startswith(layer[0]) and any(growth)
        for name, growth in probes.growth.get(Axis.EXPERTS, {}).items()
    )
    return Axis.SHARED_MLP if mixture else Axis.MLP


def _couple_mlp_to_hidden(probes: Probes, sizes: AxisSizes, attention: frozenset[str]) -> None:
    """Couple the MLP to hidden in a class without a width field, if its width is a multiple of hidden."""
    hidden = sizes.units[Axis.HIDDEN]
    multiples = {
        length // hidden
        for name, shape in probes.whole.shapes.items()
        for place, length in enumerate(shape)
        if probes.moved(Axis.HIDDEN, name, place) == length
        and length % hidden == 0
        and length > hidden
        and len(shape) == 2
        and not in_attention(name, attention)
    }
    if len(multiples) == 1:
        factor = multiples.pop()
        sizes.units[Axis.MLP] = factor * hidden
        sizes.couplings.append(Coupling(Axis.MLP, Axis.HIDDEN, Fraction(factor)))


def in_attention(name: str, attention: frozenset[str]) -> bool:
    """Whether a tensor lies in a module that contains an attention output projection."""
    return any(wildcard_name(name).startswith(module.rpartition(".")[0] + ".") for module in attention)
