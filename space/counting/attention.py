"""What a layer's attention keeps in the cache for each token, and what it multiplies."""

from __future__ import annotations

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor
from space.axes.layout import Concatenated, Fixed, Layout, PerUnit
from space.axes.polynomial import Polynomial, units_of

#: All classes that compress keys and values call the module so.
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
        """Entries that keys and values are compressed to, where the class does so."""
        self._seen = any(map(_has_heads, axis_map.tensors))
        self._cached = DynamicCache(config=config).layers

    def cached(self, layer: int) -> Polynomial:
        """Numbers that the KV cache takes for a token: the rows that make keys and values.

        None in a layer that shares the cache of another. A class that compresses keys and values caches
        them so, with the part of the key that carries the position.
        """
        if not self._attends(layer):
            return _NOTHING
        if self.latent:
            rows = self.latent + self.axis_map.config.qk_rope_head_dim
            return Polynomial.constant(self._modules(layer) * rows)
        axis_map = self.axis_map
        made = Polynomial.sum(
            rows
            for row, column in self._matrices(layer)
            if column.length >= axis_map.teacher.hidden
            and (rows := _beside_queries(row, axis_map)).of(axis_map.teacher) > axis_map.teacher.kv_heads
        )
        if made.terms or (self._seen and Axis.KV_HEADS in axis_map.free):
            return made
        # Keys and values that move with the queries cannot be told from them; every layer has its own.
        return Polynomial.variable(Axis.KV_HEADS) * self._key_and_value

    def products(self, layer: int) -> Polynomial:
        """Operations for each token attended to: two for each entry of a key and a value of every head."""
        if not self._attends(layer):
            return _NOTHING
        return Polynomial.variable(Axis.HEADS) * self._key_and_value * (2 * self._modules(layer))

    def expansion(self, layer: int) -> Polynomial:
        """Operations to expand one token's compressed keys and values, which decoding does for all anew."""
        if not self.latent or not self._attends(layer):
            return _NOTHING
        config = self.axis_map.config
        head = int(config.qk_nope_head_dim + config.v_head_dim)
        return Polynomial.variable(Axis.HEADS) * (2 * self.latent * head * self._modules(layer))

    def _attends(self, layer: int) -> bool:
        """By its tensors; where heads move none of any layer, by the cache that the class asks for."""
        if self._seen:
            return any(map(_has_heads, self.layers[layer]))
        return layer < len(self._cached) and isinstance(self._cached[layer], DynamicLayer)

    def _modules(self, layer: int) -> int:
        """How many attentions there are in one layer: one, but for some classes that compress."""
        names = {tensor.module for tensor in self.layers[layer]}
        return sum(name.endswith(_COMPRESSING) for name in names) if self.latent else 1

    def _matrices(self, layer: int) -> list[tuple[Layout, Layout]]:
        """Both dimensions of every matrix of a layer, in both orders."""
        pairs = [t.dimensions for t in self.layers[layer] if len(t.dimensions) == 2]
        return [pair for one, other in pairs for pair in ((one, other), (other, one))]

    @property
    def _key_and_value(self) -> Polynomial:
        """The entries of a head's key and of its value together."""
        config = self.axis_map.config
        if self.latent:
            return Polynomial.constant(config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
        if self.axis_map.teacher.head_dim:
            return Polynomial.variable(Axis.HEAD_DIM) * 2
        return Polynomial.constant(2 * self.axis_map.head_dim)


def _has_heads(tensor: MappedTensor) -> bool:
    return tensor.has(Axis.HEADS) or tensor.has(Axis.KV_HEADS)


def _beside_queries(layout: Layout, axis_map: AxisMap, inside: bool = False) -> Polynomial:
    """How many entries belong to KV heads and to none of their queries: those of keys and values."""
    match layout:
        case Fixed(length):
            return Polynomial.constant(length if inside else 0)
        case Concatenated(parts):
            return Polynomial.sum(_beside_queries(part, axis_map, inside) for part in parts)
        case PerUnit(Axis.HEADS):
            return _NOTHING
        case PerUnit(axis, units, inner):
            beside = _beside_queries(inner, axis_map, inside or axis is Axis.KV_HEADS)
            return units_of(axis, units, axis_map) * beside
