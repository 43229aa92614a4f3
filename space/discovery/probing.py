"""Probe a model class: build it on the meta device, double each size in turn, and record what grows."""

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
    """A model built from a config on the meta device: the shapes of saved tensors, the scalars of modules."""

    shapes: Shapes
    parameters: frozenset[str]
    scalars: ModuleScalars
    embedding: str
    head: str
    """The name of the head's weight; where the two are tied, that of the embedding."""


def build_meta_model(config: PretrainedConfig) -> MetaModel:
    """Build a config's model on the meta device and record its shapes, scalars and tensor names."""
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
    """By how many entries every dimension grew when each size was doubled."""

    base: PretrainedConfig
    whole: MetaModel
    fields: dict[Axis, str]
    sizes: dict[Axis, int]
    growth: dict[Axis | str, Shapes] = field(default_factory=dict)
    """Keyed by axis; by config field for MLP widths, whose axes are derived from the shapes later."""
    failed: dict[Axis | str, str] = field(default_factory=dict)
    """Why probing a size failed, in words for the user."""
    moving: set[tuple[str, str]] = field(default_factory=set)
    """Module scalars that depend on a size."""
    built: dict[tuple[tuple[str, Any], ...], MetaModel] = field(default_factory=dict)
    """The models that were built, by the fields that were changed."""
    alike: tuple[str, ...] = ()
    """Fields that are always set to the same value as the hidden size."""
    coupled: bool = False
    """Whether heads and hidden change together, because the class has no head size field."""

    def model_with(self, changes: Mapping[str, Any]) -> MetaModel:
        """Return the model with some fields changed, built by the first that asks."""
        key = tuple(sorted(changes.items()))
        if key not in self.built:
            self.built[key] = build_meta_model(with_sizes(self.base, changes)) if changes else self.whole
        return self.built[key]

    def moved(self, key: Axis | str, name: str, place: int) -> int:
        """Return by how many entries dimension ``place`` of tensor ``name`` grew; 0 if the probe failed."""
        return self.growth[key][name][place] if key in self.growth else 0


def with_explicit_sizes(config: PretrainedConfig) -> PretrainedConfig:
    """Return a config of the same model in which sizes that the class would derive are given as numbers.

    A missing head size becomes hidden / heads, a missing MLP width 4 × hidden. Each is only set if all
    shapes stay the same.
    """
    shapes = build_meta_model(config).shapes
    config = _with_explicit_entry(config, shapes)
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


def _with_explicit_entry(config: PretrainedConfig, shapes: Shapes) -> PretrainedConfig:
    """Set the explicit fields of the type's entry, and an MLP width with which all shapes stay the same."""
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
    """Double every size of a config, one after the other, and record which dimensions grow.

    Args:
        config: the result of ``with_explicit_sizes``.
        coupled: double hidden and heads together even if the class accepts each alone.
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
    """Double hidden, heads and KV heads, each on top of the one before, as one may have to divide another."""
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
    """Return the last line of an error's message, or its type's name if it has none."""
    return str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__


def _grows(probes: Probes, key: Axis | str) -> bool:
    """Whether doubling a size made some dimension larger and none (such as hidden / heads) smaller."""
    moves = [move for moves in probes.growth.get(key, {}).values() for move in moves]
    return any(move > 0 for move in moves) and not any(move < 0 for move in moves)


def _double(
    probes: Probes, key: Axis | str, changes: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> bool:
    """Record what grows from the fields ``before`` to ``changes``; False if the class refuses them."""
    try:
        less, more = probes.model_with(before or {}), probes.model_with(changes)
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
