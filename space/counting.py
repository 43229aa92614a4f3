"""What an architecture costs, in closed form from the axis map, nothing built.

A dimension's layout gives a polynomial in the sizes of the axes; a tensor is the product of its
dimensions; and a layer's tensors count once for each layer of their kind that a student keeps.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import DynamicCache

from space.architecture import Axis
from space.axis_map import AxisMap, Tensor, build
from space.budget import Budget, Measure
from space.depth import layers_of_each_kind
from space.experts import experts_per_token
from space.layout import Each, Fixed, Layout, Together
from space.polynomial import Polynomial


def parameter_polynomial(axis_map: AxisMap) -> Polynomial:
    """The number of parameters of a student of this teacher, tied weights once, buffers not."""
    return _sum(axis_map, _parameters(axis_map))


def non_embedding_polynomial(axis_map: AxisMap) -> Polynomial:
    """The parameters without those that grow with the vocabulary or the context.

    Left out are the tables of token and position embeddings and the output head, tied to the former or not.
    """
    uses = uses_of(axis_map)
    kept = (t for t in _parameters(axis_map) if t.name not in uses.tables | uses.head)
    return _sum(axis_map, kept)


def active_polynomial(axis_map: AxisMap) -> Polynomial:
    """The parameters that take part in the work on one token.

    Of the routed experts those count that a token is sent to; everything else counts whole, the router and
    all of the embedding table included, as is usual where models are named by their active parameters.

    Raises:
        InputError: the config of a mixture does not say how many experts a token is sent to.
    """
    return _sum(axis_map, _parameters(axis_map), _active(axis_map))


def matrix_polynomial(axis_map: AxisMap) -> Polynomial:
    """The weights that each token is multiplied with: all matrices but those that are looked up.

    With tied embeddings the table serves as the head too, and counts once; of the routed experts
    those count that a token is sent to.
    """
    uses = uses_of(axis_map)
    left_out = (uses.tables - uses.head) | uses.vectors
    kept = (t for t in _parameters(axis_map) if t.name not in left_out)
    return _sum(axis_map, kept, _active(axis_map))


def cache_polynomial(
    axis_map: AxisMap, tokens: int | None = None, kept: Sequence[int] | None = None
) -> Polynomial:
    """Numbers in the KV cache, over all layers.

    In a layer that makes keys and values of its own each token takes the rows that make them; a layer
    that shares those of another takes none. Classes that compress keys and values (``kv_lora_rank``)
    cache them expanded in transformers: a key and a value for each head. States of state-space and
    linear-attention layers, which do not grow, are left out.

    Args:
        axis_map: the teacher's.
        tokens: of one sequence, of which a layer with a sliding window keeps one fewer than the window;
            by default what a token takes before any window is full.
        kept: the layers that a student keeps, where windows differ among layers of one kind; by
            default every kind of layer has the teacher's on average.
    """

    def stored(window: int | None) -> Fraction:
        return Fraction(1 if tokens is None else min(tokens, window - 1) if window else tokens)

    return _over_layers(axis_map, partial(_cached, axis_map), stored, kept)


def decode_flops(axis_map: AxisMap, context: int, kept: Sequence[int] | None = None) -> Polynomial:
    """Floating-point operations to make one token after ``context`` others.

    Two for each weight of a matrix, and for each head and token attended to, itself among them, two
    for each entry of a key and of a value. A layer with a sliding window attends to no more than the
    window. The recurrences of state-space and linear-attention layers are left out.

    Args:
        axis_map: the teacher's.
        context: tokens before the one that is made.
        kept: as for ``cache_polynomial``.
    """
    return _flops(axis_map, lambda window: Fraction(min(window or context + 1, context + 1)), kept)


def prefill_flops(axis_map: AxisMap, prompt: int, kept: Sequence[int] | None = None) -> Polynomial:
    """Floating-point operations for a token of a prompt, the mean over its positions.

    As ``decode_flops``, each position attending to itself and those before; whether a kernel skips
    the masked half is its own affair. The output head is counted at every position.

    Args:
        axis_map: the teacher's.
        prompt: tokens.
        kept: as for ``cache_polynomial``.
    """

    def mean(window: int | None) -> Fraction:
        widest = min(window or prompt, prompt)
        return Fraction(widest * (widest + 1), 2 * prompt) + Fraction((prompt - widest) * widest, prompt)

    return _flops(axis_map, mean, kept)


@dataclass(frozen=True)
class Uses:
    """What some parameters are for, by name; told by the class itself."""

    tables: frozenset[str]
    """Looked up by token or position."""
    head: frozenset[str]
    """Of the output head; a tied weight under its first name."""
    vectors: frozenset[str]
    """Biases, and whatever norms hold: added or scaled with, entry by entry."""


def uses_of(axis_map: AxisMap) -> Uses:
    """Build the class on the meta device and look."""
    model = build(axis_map.config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tables, vectors = set(), set()
    for module in model.modules():
        for own, parameter in module.named_parameters(recurse=False):
            name = names[id(parameter)]
            if isinstance(module, nn.Embedding):
                tables.add(name)
            elif parameter.ndim < 2 or own.endswith("bias") or "Norm" in type(module).__name__:
                vectors.add(name)
    head = model.get_output_embeddings()
    of_head = {names[id(parameter)] for parameter in head.parameters()} if head is not None else set()
    return Uses(frozenset(tables), frozenset(of_head), frozenset(vectors))


def windows(axis_map: AxisMap) -> tuple[int | None, ...]:
    """For each layer, the most tokens that its attention reaches; None for all. The cache's class tells."""
    layers = DynamicCache(config=axis_map.config).layers
    found = [getattr(layer, "sliding_window", None) for layer in layers]
    return (*found, *[None] * (axis_map.teacher.layers - len(found)))


def entries(layout: Layout, axis_map: AxisMap) -> Polynomial:
    """How many entries a dimension has."""
    match layout:
        case Fixed(length):
            return Polynomial.constant(length)
        case Together(parts):
            return Polynomial.sum(entries(part, axis_map) for part in parts)
        case Each(axis, units, inner):
            return _units(axis, units, axis_map) * entries(inner, axis_map)


def _units(axis: Axis | None, units: int, axis_map: AxisMap) -> Polynomial:
    """How many units an ``Each`` has, of those that the teacher's has; queries are counted in their group."""
    if axis is None:
        return Polynomial.constant(units)
    teacher = axis_map.teacher
    if axis is Axis.HEADS:
        group = Polynomial.variable(Axis.HEADS) * Polynomial.variable(Axis.KV_HEADS, -1)
        return group * (Fraction(units * teacher.kv_heads, teacher.heads))
    return Polynomial.variable(axis) * Fraction(units, teacher[axis])


def _of_groups_alone(layout: Layout, axis_map: AxisMap, inside: bool = False) -> Polynomial:
    """How many entries belong to KV heads and to none of their queries: those of keys and values."""
    match layout:
        case Fixed(length):
            return Polynomial.constant(length if inside else 0)
        case Together(parts):
            return Polynomial.sum(_of_groups_alone(part, axis_map, inside) for part in parts)
        case Each(Axis.HEADS):
            return Polynomial.constant(0)
        case Each(axis, units, inner):
            alone = _of_groups_alone(inner, axis_map, inside or axis is Axis.KV_HEADS)
            return _units(axis, units, axis_map) * alone


def _cached(axis_map: AxisMap, layer: Sequence[Tensor]) -> Polynomial:
    """What the KV cache of one layer takes for a token."""
    heads = Polynomial.variable(Axis.HEADS)
    if not _attends(layer):
        return Polynomial.constant(0)
    if getattr(axis_map.config, "kv_lora_rank", None):
        return heads * _key_and_value(axis_map)
    projected = Polynomial.sum(
        rows
        for tensor in layer
        if len(tensor.dimensions) == 2
        for row, column in (tensor.dimensions, tensor.dimensions[::-1])
        if column.length >= axis_map.teacher.hidden
        and (rows := _of_groups_alone(row, axis_map)).of(axis_map.teacher) > axis_map.teacher.kv_heads
    )
    if projected.terms or Axis.KV_HEADS in axis_map.free:
        return projected
    # Keys and values that follow the queries cannot be told from them; every layer has its own.
    return Polynomial.variable(Axis.KV_HEADS) * _key_and_value(axis_map)


def _key_and_value(axis_map: AxisMap) -> Polynomial:
    """The entries of a head's key and of its value together."""
    config = axis_map.config
    if getattr(config, "kv_lora_rank", None):
        return Polynomial.constant(config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    if axis_map.teacher.head_dim:
        return Polynomial.variable(Axis.HEAD_DIM) * 2
    return Polynomial.constant(2 * axis_map.head_dim)


def _flops(
    axis_map: AxisMap, attended: Callable[[int | None], Fraction], kept: Sequence[int] | None
) -> Polynomial:
    """Of all matrices and of attention, which reaches ``attended`` tokens through a window."""
    products = Polynomial.variable(Axis.HEADS) * _key_and_value(axis_map) * 2

    def of_layer(layer: Sequence[Tensor]) -> Polynomial:
        return products if _attends(layer) else Polynomial.constant(0)

    return matrix_polynomial(axis_map) * 2 + _over_layers(axis_map, of_layer, attended, kept)


def _attends(layer: Sequence[Tensor]) -> bool:
    return any(tensor.has(axis) for tensor in layer for axis in (Axis.HEADS, Axis.KV_HEADS))


def budget_polynomial(axis_map: AxisMap, budget: Budget) -> Polynomial:
    """What a budget measures, in its unit.

    Raises:
        InputError: the teacher does not say what has to be known for it.
    """
    match budget.of:
        case Measure.TOTAL:
            return parameter_polynomial(axis_map)
        case Measure.NON_EMBEDDING:
            return non_embedding_polynomial(axis_map)
        case Measure.ACTIVE:
            return active_polynomial(axis_map)
        case Measure.WEIGHTS:
            return parameter_polynomial(axis_map) * budget.value_bytes
        case Measure.KV_CACHE:
            return cache_polynomial(axis_map) * budget.value_bytes


def _parameters(axis_map: AxisMap) -> list[Tensor]:
    return [tensor for tensor in axis_map.tensors if tensor.name not in axis_map.buffers]


Part = Callable[[Tensor, Polynomial], Polynomial]


def _active(axis_map: AxisMap) -> Part:
    """Counts of routed experts only those that a token is sent to."""
    if not axis_map.teacher.experts:
        return lambda tensor, size: size
    expert = {
        tensor.module
        for tensor in axis_map.tensors
        if tensor.has(Axis.EXPERTS) and tensor.has(Axis.EXPERT_MLP)
    }
    top_k = Polynomial.constant(experts_per_token(axis_map))
    return lambda tensor, size: size.replaced(Axis.EXPERTS, top_k) if tensor.module in expert else size


def _sum(axis_map: AxisMap, tensors: Iterable[Tensor], part: Part = lambda tensor, size: size) -> Polynomial:
    """Entries of tensors; most layers repeat those of another."""

    @cache
    def size(dimensions: tuple[Layout, ...]) -> Polynomial:
        product = Polynomial.constant(1)
        for dimension in dimensions:
            product = product * entries(dimension, axis_map)
        return product

    def whole(some: Sequence[Tensor]) -> Polynomial:
        return Polynomial.sum(part(tensor, size(tensor.dimensions)) for tensor in some)

    tensors = list(tensors)
    outside = whole([tensor for tensor in tensors if tensor.layer is None])
    return outside + _over_layers(axis_map, whole, tensors=tensors)


def _over_layers(
    axis_map: AxisMap,
    count: Callable[[Sequence[Tensor]], Polynomial],
    weight: Callable[[int | None], Fraction] = lambda window: Fraction(1),
    kept: Sequence[int] | None = None,
    tensors: Sequence[Tensor] | None = None,
) -> Polynomial:
    """The sum of a count over layers.

    Args:
        axis_map: the teacher's.
        count: of one layer's tensors; the same for all layers of a kind.
        weight: of a layer, by its window.
        kept: the layers to sum over; by default as many of each kind as a student keeps.
        tensors: those to count; all by default.
    """
    kinds, reach = axis_map.kinds, windows(axis_map)
    by_layer: dict[int | None, list[Tensor]] = defaultdict(list)
    for tensor in axis_map.tensors if tensors is None else tensors:
        by_layer[tensor.layer].append(tensor)
    counts = [count(by_layer[layer]) for layer in range(len(kinds))]
    assert all(counts[kinds.index(kind)] == one for kind, one in zip(kinds, counts, strict=True))
    if kept is not None:
        return Polynomial.sum(counts[layer] * weight(reach[layer]) for layer in kept)
    shares = Counter(kinds)
    parts = (
        counts[layer] * Polynomial.variable(kind) * (weight(reach[layer]) / shares[kind])
        for layer, kind in enumerate(kinds)
    )
    return Polynomial(Polynomial.sum(parts).terms, _layers(axis_map))


def _layers(axis_map: AxisMap) -> dict[int, NDArray[np.int64]]:
    """For each kind, how many of it are kept of 0, 1, 2, … layers."""
    kinds = axis_map.kinds
    tables = [dict.fromkeys(kinds, 0)]
    tables += [layers_of_each_kind(kinds, layers) for layers in range(1, len(kinds) + 1)]
    return {kind: np.array([table[kind] for table in tables]) for kind in sorted(set(kinds))}
