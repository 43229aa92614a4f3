"""Asking a class which dimensions move: built on the meta device, with one size after the other changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from space.axes.architecture import Axis
from space.axes.axis_map import BUILD_ERRORS, build
from space.axes.config_fields import NAMES, WIDTHS, first_field_of, layers_of, read_field, with_sizes
from space.axes.layers import ModuleScalars, module_scalars
from space.discovery.families import family_entry

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MetaModel:
    """What a class makes of a config: every saved tensor's shape, every scalar of every module."""

    shapes: Shapes
    parameters: frozenset[str]
    scalars: ModuleScalars
    embedding: str
    head: str
    """The embedding's name where the two are tied."""


def build_meta_model(config: PretrainedConfig) -> MetaModel:
    """Build a config's model on the meta device and note what can be told of it."""
    model = build(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    parameters = frozenset(shapes)
    saved = model.state_dict().keys()
    shapes |= {name: tuple(b.shape) for name, b in model.named_buffers() if name in saved}
    names = {id(p): name for name, p in model.named_parameters()}
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding = names.get(id(getattr(table, "weight", None)), "")
    return MetaModel(
        shapes,
        parameters,
        module_scalars(model),
        embedding,
        names.get(id(getattr(head, "weight", None)), embedding),
    )


@dataclass
class Probes:
    """By how much every dimension grew when a size was doubled."""

    base: PretrainedConfig
    whole: MetaModel
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


def with_explicit_sizes(config: PretrainedConfig) -> PretrainedConfig:
    """The same model with sizes that the class would fill in itself given as numbers.

    A missing head size is hidden / heads, a missing MLP width four times hidden; each is only
    written where the shapes stay the same.
    """
    shapes = build_meta_model(config).shapes
    config = _explicit(config, shapes)
    hidden, heads = first_field_of(config, NAMES[Axis.HIDDEN]), first_field_of(config, NAMES[Axis.HEADS])
    if not hidden or not heads:
        return config
    changes = {name: 4 * read_field(config, hidden) for name in WIDTHS if name in config.to_dict()}
    changes |= {"head_dim": read_field(config, hidden) // max(1, read_field(config, heads))}
    for name, size in changes.items():
        if read_field(config, name) is None:
            try:
                filled = with_sizes(config, {name: size})
                if build_meta_model(filled).shapes == shapes:
                    config = filled
            except BUILD_ERRORS:
                continue
    return config


def _explicit(config: PretrainedConfig, shapes: Shapes) -> PretrainedConfig:
    """The entry's explicit fields, with the MLP's width as it comes out, if the shapes can stay the same."""
    entry = family_entry(config.model_type)
    if entry.explicit is None:
        return config
    changes = {name: value for name, value in entry.explicit(config).items() if name in config.to_dict()}
    lengths = {length for shape in shapes.values() for length in shape}
    width = first_field_of(config, WIDTHS)
    for option in ({}, *({width: length} for length in sorted(lengths) if width)):
        try:
            explicit = with_sizes(config, changes | option)
            if build_meta_model(explicit).shapes == shapes:
                return explicit
        except BUILD_ERRORS:
            continue
    return config


def probe(config: PretrainedConfig, coupled: bool) -> Probes:
    """Double every size of a config, one after the other, and note which dimensions move.

    Args:
        config: from ``with_explicit_sizes``.
        coupled: move hidden and heads together even if the class builds without.
    """
    fields = {axis: name for axis, names in NAMES.items() if (name := first_field_of(config, names))}
    sizes = {axis: int(read_field(config, name)) for axis, name in fields.items()} | {
        Axis.LAYERS: layers_of(config)
    }
    probes = Probes(config, build_meta_model(config), fields, sizes)
    alike = family_entry(config.model_type).alike.get(Axis.HIDDEN, ())
    probes.alike = tuple(name for name in alike if read_field(config, name) == sizes[Axis.HIDDEN])
    _probe_attention(probes, coupled)
    for key in (Axis.EXPERTS, Axis.HEAD_DIM):
        if key in fields:
            _double(probes, key, {fields[key]: 2 * sizes[key]})
    for name in WIDTHS:
        if own := first_field_of(config, (name,)):
            _double(probes, own, {own: 2 * int(read_field(config, own))})
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


def refusal_reason(error: BaseException) -> str:
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
        less = build_meta_model(with_sizes(probes.base, before)) if before else probes.whole
        more = build_meta_model(with_sizes(probes.base, changes))
    except BUILD_ERRORS as error:
        probes.failed[key] = f"the class refuses other sizes ({refusal_reason(error)})"
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
