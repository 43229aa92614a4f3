"""Asking a class which dimensions move: built on the meta device, with one size after the other changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from space.axes.architecture import Axis
from space.axes.axis_map import Refusal, build
from space.axes.config_fields import NAMES, WIDTHS, layers_of, named, read, with_sizes
from space.axes.layers import Scalars, scalars
from space.discovery.families import entry_of

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Built:
    """What a class makes of a config: every saved tensor's shape, every scalar of every module."""

    shapes: Shapes
    parameters: frozenset[str]
    scalars: Scalars
    embedding: str
    head: str
    """The embedding's name where the two are tied."""


def built(config: PretrainedConfig) -> Built:
    """Build a config's model on the meta device and note what can be told of it."""
    model = build(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    parameters = frozenset(shapes)
    saved = model.state_dict().keys()
    shapes |= {name: tuple(b.shape) for name, b in model.named_buffers() if name in saved}
    names = {id(p): name for name, p in model.named_parameters()}
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding = names.get(id(getattr(table, "weight", None)), "")
    return Built(
        shapes, parameters, scalars(model), embedding, names.get(id(getattr(head, "weight", None)), embedding)
    )


@dataclass
class Probes:
    """By how much every dimension grew when a size was doubled."""

    base: PretrainedConfig
    whole: Built
    fields: dict[Axis, str]
    sizes: dict[Axis, int]
    growth: dict[Axis | str, Shapes] = field(default_factory=dict)
    """By axis; by field for the widths of MLPs, whose axes shapes tell."""
    failed: dict[Axis | str, str] = field(default_factory=dict)
    """What the class said to a size that it refused."""
    moving: set[tuple[str, str]] = field(default_factory=set)
    """Scalars that depend on a size."""
    alike: tuple[str, ...] = ()
    """Fields that are set with hidden's own."""
    coupled: bool = False
    """Heads and hidden move together: the class has no head size of its own."""

    def moved(self, key: Axis | str, name: str, place: int) -> int:
        """By how many entries a dimension grew; 0 where the probe failed."""
        return self.growth[key][name][place] if key in self.growth else 0


def written_out(config: PretrainedConfig) -> PretrainedConfig:
    """The same model with sizes that the class would fill in itself given as numbers.

    A missing head size is hidden / heads, a missing MLP width four times hidden; each is only
    written where the shapes stay the same.
    """
    shapes = built(config).shapes
    config = _explicit(config, shapes)
    hidden, heads = named(config, NAMES[Axis.HIDDEN]), named(config, NAMES[Axis.HEADS])
    if not hidden or not heads:
        return config
    changes = {name: 4 * read(config, hidden) for name in WIDTHS if name in config.to_dict()}
    changes |= {"head_dim": read(config, hidden) // max(1, read(config, heads))}
    for name, size in changes.items():
        if read(config, name) is None:
            try:
                filled = with_sizes(config, {name: size})
                if built(filled).shapes == shapes:
                    config = filled
            except Refusal:
                continue
    return config


def _explicit(config: PretrainedConfig, shapes: Shapes) -> PretrainedConfig:
    """The entry's explicit fields, with the MLP's width as it comes out, if the shapes can stay the same."""
    entry = entry_of(config.model_type)
    if entry.explicit is None:
        return config
    changes = {name: value for name, value in entry.explicit(config).items() if name in config.to_dict()}
    lengths = {length for shape in shapes.values() for length in shape}
    width = named(config, WIDTHS)
    for option in ({}, *({width: length} for length in sorted(lengths) if width)):
        try:
            explicit = with_sizes(config, changes | option)
            if built(explicit).shapes == shapes:
                return explicit
        except Refusal:
            continue
    return config


def probe(config: PretrainedConfig, coupled: bool) -> Probes:
    """Double every size of a config, one after the other, and note which dimensions move.

    Args:
        config: from ``written_out``.
        coupled: move hidden and heads together even if the class builds without.
    """
    fields = {axis: name for axis, names in NAMES.items() if (name := named(config, names))}
    sizes = {axis: int(read(config, name)) for axis, name in fields.items()} | {
        Axis.LAYERS: layers_of(config)
    }
    probes = Probes(config, built(config), fields, sizes)
    alike = entry_of(config.model_type).alike.get(Axis.HIDDEN, ())
    probes.alike = tuple(name for name in alike if read(config, name) == sizes[Axis.HIDDEN])
    _probe_attention(probes, coupled)
    for key in (Axis.EXPERTS, Axis.HEAD_DIM):
        if key in fields:
            _double(probes, key, {fields[key]: 2 * sizes[key]})
    for name in WIDTHS:
        if own := named(config, (name,)):
            _double(probes, own, {own: 2 * int(read(config, own))})
    return probes


def _probe_attention(probes: Probes, coupled: bool) -> None:
    """Hidden, heads and KV heads: doubled one after the other and kept so, as one may divide another."""
    fields, sizes = probes.fields, probes.sizes
    hidden = dict.fromkeys((fields[Axis.HIDDEN], *probes.alike), 2 * sizes[Axis.HIDDEN])
    heads = {fields[Axis.HEADS]: 2 * sizes[Axis.HEADS]}
    kv = {fields[Axis.KV_HEADS]: 2 * sizes[Axis.KV_HEADS]} if Axis.KV_HEADS in fields else {}
    _double(probes, Axis.HIDDEN, hidden)
    _double(probes, Axis.HEADS, hidden | heads, hidden) or _double(
        probes, Axis.HEADS, hidden | heads | kv, hidden
    )
    if coupled or not _grows(probes, Axis.HEADS):
        probes.coupled = True
        probes.failed.pop(Axis.HEADS, None)
        probes.growth.pop(Axis.HEADS, None)
        _double(probes, Axis.HIDDEN, hidden | heads)
    if kv:
        _double(probes, Axis.KV_HEADS, hidden | heads | kv, hidden | heads)


def last_line(error: BaseException) -> str:
    """What a class says when it refuses, without where."""
    return str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__


def _grows(probes: Probes, key: Axis | str) -> bool:
    """Whether a size makes something larger and nothing smaller, such as hidden / heads."""
    moves = [move for moves in probes.growth.get(key, {}).values() for move in moves]
    return any(move > 0 for move in moves) and not any(move < 0 for move in moves)


def _double(
    probes: Probes, key: Axis | str, changes: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> bool:
    """Note what a change moves; False if the class refuses it."""
    try:
        less = built(with_sizes(probes.base, before)) if before else probes.whole
        more = built(with_sizes(probes.base, changes))
    except Refusal as error:
        probes.failed[key] = f"the class refuses other sizes ({last_line(error)})"
        return False
    if more.shapes.keys() != probes.whole.shapes.keys():
        probes.failed[key] = "parameters appear or vanish with its size"
        return False
    probes.failed.pop(key, None)
    probes.growth[key] = {
        name: tuple(a - b for a, b in zip(more.shapes[name], less.shapes[name], strict=True))
        for name in probes.whole.shapes
    }
    same = less.scalars.keys() & more.scalars.keys()
    probes.moving |= {at for at in same if less.scalars[at] != more.scalars[at]}
    return True
