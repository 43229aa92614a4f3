"""The KV cache and the floating-point operations of a layer's attention, per token."""

from __future__ import annotations

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor
from space.axes.config_fields import own_fields_of_layers
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit
from space.axes.polynomial import Polynomial, units_of

#: The name of the compressing module in all classes with multi-head latent attention.
_COMPRESSING = "kv_a_proj_with_mqa"
_NOTHING = Polynomial.constant(0)


class Attention:
    """The attention of a teacher's layers.

    Args:
        axis_map: the teacher's.
    """

    def __init__(self, axis_map: AxisMap) -> None:
        self.axis_map, config = axis_map, axis_map.config
        self.layers: dict[int, list[MappedTensor]] = {layer: [] for layer in range(axis_map.teacher.layers)}
        for tensor in axis_map.tensors:
            if tensor.layer is not None:
                self.layers[tensor.layer].append(tensor)
        self.latent: int | None = getattr(config, "kv_lora_rank", None)
        """The number of entries of compressed keys and values; None if the class does not compress them."""
        self._heads_mapped = any(map(_has_heads, axis_map.tensors))
        self._cached = DynamicCache(config=config).layers

    def cached(self, layer: int) -> Polynomial:
        """Return how many numbers the KV cache holds per token: the rows that produce keys and values.

        A layer that shares the cache of another holds none. A class that compresses keys and values caches
        them compressed, together with the part of the key that carries the position.
        """
        if not self._attends(layer):
            return _NOTHING
        if self.latent:
            rows = self.latent + self.axis_map.config.qk_rope_head_dim
            return Polynomial.constant(self._modules(layer) * rows)
        axis_map = self.axis_map
        if own_fields_of_layers(axis_map.config):
            return Polynomial.constant(self._own_entries(layer))
        produced = Polynomial.sum(
            rows
            for row, column in self._matrices(layer)
            if column.length >= axis_map.teacher.hidden
            and (rows := _key_value_entries(row, axis_map)).of(axis_map.teacher) > axis_map.teacher.kv_heads
        )
        if produced.terms or (self._heads_mapped and Axis.KV_HEADS in axis_map.free):
            return produced
        # Keys and values that change with the queries look like them; assume that every layer has its own.
        return Polynomial.variable(Axis.KV_HEADS) * self._key_and_value(layer)

    def products(self, layer: int) -> Polynomial:
        """Return the operations per attended token: two per entry of a key and of a value of every head."""
        if not self._attends(layer):
            return _NOTHING
        return Polynomial.variable(Axis.HEADS) * self._key_and_value(layer) * (2 * self._modules(layer))

    def expansion(self, layer: int) -> Polynomial:
        """Return the operations to expand one token's compressed keys and values; decoding repeats them."""
        if not self.latent or not self._attends(layer):
            return _NOTHING
        config = self.axis_map.config
        head = int(config.qk_nope_head_dim + config.v_head_dim)
        return Polynomial.variable(Axis.HEADS) * (2 * self.latent * head * self._modules(layer))

    def _attends(self, layer: int) -> bool:
        """Whether a layer has attention: by its tensors, or by ``DynamicCache`` if no tensor has heads."""
        if self._heads_mapped:
            return any(map(_has_heads, self.layers[layer]))
        return layer < len(self._cached) and isinstance(self._cached[layer], DynamicLayer)

    def _modules(self, layer: int) -> int:
        """The number of attention modules in one layer: one, except in some classes that compress."""
        names = {tensor.module for tensor in self.layers[layer]}
        return sum(name.endswith(_COMPRESSING) for name in names) if self.latent else 1

    def _matrices(self, layer: int) -> list[tuple[Layout, Layout]]:
        """The two dimensions of every matrix of a layer, in both orders."""
        pairs = [t.dimensions for t in self.layers[layer] if len(t.dimensions) == 2]
        return [pair for one, other in pairs for pair in ((one, other), (other, one))]

    def _own_entries(self, layer: int) -> int:
        """The entries of keys and values of a layer whose heads, which are not cut, have sizes of their own.

        A key that serves as the value as well is cached twice; the last layers may share what others cached.
        """
        sharing = getattr(self.axis_map.config, "num_kv_shared_layers", None) or 0
        if layer >= self.axis_map.teacher.layers - sharing:
            return 0
        own = self.axis_map.config.per_layer_config[layer]
        return int(2 * own.num_key_value_heads * own.head_dim)

    def _key_and_value(self, layer: int) -> Polynomial:
        """The number of entries of a head's key and value together."""
        config = self.axis_map.config
        if self.latent:
            return Polynomial.constant(config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
        if self.axis_map.teacher.head_dim:
            return Polynomial.variable(Axis.HEAD_DIM) * 2
        if own_fields_of_layers(config):
            return Polynomial.constant(2 * int(config.per_layer_config[layer].head_dim))
        return Polynomial.constant(2 * self.axis_map.head_dim)


def _has_heads(tensor: MappedTensor) -> bool:
    return tensor.has(Axis.HEADS) or tensor.has(Axis.KV_HEADS)


def _key_value_entries(layout: Layout, axis_map: AxisMap, inside: bool = False) -> Polynomial:
    """Count the entries of keys and values: those that belong to KV heads but to none of their queries."""
    match layout:
        case Fixed(length):
            return Polynomial.constant(length if inside else 0)
        case Concatenated(parts):
            return Polynomial.sum(_key_value_entries(part, axis_map, inside) for part in parts)
        case PerUnit(Axis.HEADS):
            return _NOTHING
        case PerUnit(axis, units, inner):
            each = _key_value_entries(inner, axis_map, inside or axis is Axis.KV_HEADS)
            return units_of(axis, units, axis_map) * each
