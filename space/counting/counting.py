"""Parameters, KV cache and FLOPs of an architecture in closed form, from the axis map alone.

Each count is a polynomial in the sizes of the axes and the numbers of layers of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from typing import TypeVar

from torch import nn

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor, build
from space.axes.config_fields import TOP_K, first_field_of, read_field
from space.axes.layout import Concatenated, Layout, PerUnit
from space.axes.polynomial import Part, Polynomial, sum_of_layers, sum_of_tensors
from space.counting.attention import Attention
from space.counting.budget import Budget, Measure
from space.input_error import InputError


def experts_per_token(axis_map: AxisMap) -> int:
    """Return how many routed experts process each token.

    Raises:
        InputError: no known field of the config holds the number.
    """
    field = first_field_of(axis_map.config, TOP_K)
    if field is None:
        raise InputError(
            "The config of a mixture has to say how many experts a token is sent to",
            f"in {axis_map.config.model_type!r}, no known field does",
            "Choose another teacher with --model",
        )
    return int(read_field(axis_map.config, field))


def expert_groups(axis_map: AxisMap) -> int:
    """Return the number of groups that experts are routed in; each group keeps equally many experts."""
    groups = (_groups(layout) for tensor in axis_map.tensors for layout in tensor.dimensions)
    return next((found for found in groups if found), 1)


def _groups(layout: Layout) -> int:
    match layout:
        case PerUnit(None, units, PerUnit(Axis.EXPERTS, _, _)):
            return units
        case PerUnit(_, _, inner):
            return _groups(inner)
        case Concatenated(parts):
            return max(map(_groups, parts))
    return 0


def fewest_experts(axis_map: AxisMap) -> int:
    """Return the smallest number of experts that routing allows.

    It is the number of experts per token. With groups, the groups open to a token must together hold that
    many, and each must have two experts, since routers choose groups by their two best experts.
    """
    chosen, groups = experts_per_token(axis_map), expert_groups(axis_map)
    if groups == 1:
        return chosen
    open_groups = read_field(axis_map.config, "topk_group") or groups
    return groups * max(2, -(-chosen // open_groups))


_Found = TypeVar("_Found")


def _kept(find: Callable[[AxisMap], _Found]) -> Callable[[AxisMap], _Found]:
    """Keep what is found on the map, as ``cached_property`` does: a run asks for it a hundred times."""

    @wraps(find)
    def kept(axis_map: AxisMap) -> _Found:
        found: dict[str, _Found] = vars(axis_map).setdefault("_counted", {})
        if find.__name__ not in found:
            found[find.__name__] = find(axis_map)
        return found[find.__name__]

    return kept


@_kept
def parameter_polynomial(axis_map: AxisMap) -> Polynomial:
    """Return the number of parameters of a student, counting tied weights once and no buffers."""
    return sum_of_tensors(axis_map, _parameters(axis_map))


@_kept
def non_embedding_polynomial(axis_map: AxisMap) -> Polynomial:
    """Return the parameters that do not grow with the vocabulary or the context.

    This leaves out the token and position embeddings and the output head, tied or not.
    """
    uses = parameter_uses(axis_map)
    kept = (t for t in _parameters(axis_map) if t.name not in uses.tables | uses.head)
    return sum_of_tensors(axis_map, kept)


@_kept
def active_polynomial(axis_map: AxisMap) -> Polynomial:
    """Return the number of active parameters: those that process one token.

    Routed experts count as many as each token is sent to. Everything else counts in full, including the
    router and the whole embedding table, as is usual in model names that state active parameters.

    Raises:
        InputError: the config of a mixture does not say how many experts a token is sent to.
    """
    return sum_of_tensors(axis_map, _parameters(axis_map), _active(axis_map))


@_kept
def matrix_polynomial(axis_map: AxisMap) -> Polynomial:
    """Return the number of weights in matrix products per token: all matrices except embedding lookups.

    A tied embedding table counts once, as the head; routed experts count as many as a token is sent to.
    """
    uses = parameter_uses(axis_map)
    left_out = (uses.tables - uses.head) | uses.vectors
    kept = (t for t in _parameters(axis_map) if t.name not in left_out)
    return sum_of_tensors(axis_map, kept, _active(axis_map))


def cache_polynomial(
    axis_map: AxisMap, tokens: int | None = None, kept: Sequence[int] | None = None
) -> Polynomial:
    """Return how many numbers the KV cache holds, over all layers.

    A layer with keys and values of its own holds one number per token for each row that produces them; a
    layer that shares another's holds none. A class that compresses them (``kv_lora_rank``) caches them
    compressed. The states of state-space and linear-attention layers do not grow and are left out.

    Args:
        axis_map: the teacher's.
        tokens: length of the sequence; a layer with a sliding window keeps at most one token fewer than
            the window. By default, the count is per token, before any window is full.
        kept: the layers that a student keeps, for classes whose windows differ among layers of one kind;
            by default, each kind of layer gets the teacher's average.
    """

    def stored(window: int | None) -> Fraction:
        return Fraction(1 if tokens is None else min(tokens, window - 1) if window else tokens)

    return sum_of_layers(axis_map, Attention(axis_map).cached, stored, kept)


def decode_flops(axis_map: AxisMap, context: int, kept: Sequence[int] | None = None) -> Polynomial:
    """Return the floating-point operations to generate one token after ``context`` others.

    Two per weight of a matrix; and per head and attended token (itself included), two per entry of a key
    and of a value. A layer with a sliding window attends to the window at most. Compressed keys and values
    are expanded anew for every earlier token. The recurrences of state-space and linear-attention layers
    are left out.

    Args:
        axis_map: the teacher's.
        context: the number of tokens before the generated one.
        kept: as for ``cache_polynomial``.
    """

    def attended(window: int | None) -> Fraction:
        return Fraction(min(window or context + 1, context + 1))

    attention = Attention(axis_map)
    products = sum_of_layers(axis_map, attention.products, attended, kept)
    others = sum_of_layers(axis_map, attention.expansion, lambda window: attended(window) - 1, kept)
    return matrix_polynomial(axis_map) * 2 + products + others


def prefill_flops(axis_map: AxisMap, prompt: int, kept: Sequence[int] | None = None) -> Polynomial:
    """Return the floating-point operations per prompt token, averaged over its positions.

    Counted as in ``decode_flops``, each position attending to itself and those before it, even if a kernel
    also computes the masked half. The output head counts at every position.

    Args:
        axis_map: the teacher's.
        prompt: the number of tokens of the prompt.
        kept: as for ``cache_polynomial``.
    """

    def mean(window: int | None) -> Fraction:
        widest = min(window or prompt, prompt)
        return Fraction(widest * (widest + 1), 2 * prompt) + Fraction((prompt - widest) * widest, prompt)

    products = sum_of_layers(axis_map, Attention(axis_map).products, mean, kept)
    return matrix_polynomial(axis_map) * 2 + products


@dataclass(frozen=True)
class ParameterUses:
    """Names of parameters by their use, as the model class shows it."""

    tables: frozenset[str]
    """Embedding tables, looked up by token or position."""
    head: frozenset[str]
    """Parameters of the output head; a tied weight under its first name."""
    vectors: frozenset[str]
    """Biases and the parameters of norms, which apply entry by entry."""


@_kept
def parameter_uses(axis_map: AxisMap) -> ParameterUses:
    """Find the uses of parameters by building the class on the meta device."""
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
    return ParameterUses(frozenset(tables), frozenset(of_head), frozenset(vectors))


def budget_polynomial(axis_map: AxisMap, budget: Budget) -> Polynomial:
    """Return the count of what a budget measures, in the budget's unit.

    Raises:
        InputError: the teacher's config lacks a figure that the count needs.
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


def _parameters(axis_map: AxisMap) -> list[MappedTensor]:
    return [tensor for tensor in axis_map.tensors if tensor.name not in axis_map.buffers]


def _active(axis_map: AxisMap) -> Part:
    """Make the function that counts, of routed experts, only as many as a token is sent to."""
    experts = axis_map.teacher.experts
    if not experts:
        return lambda tensor, size: size
    top_k = experts_per_token(axis_map)
    routed = {
        tensor.module
        for tensor in axis_map.tensors
        if (tensor.has(Axis.EXPERTS) and tensor.has(Axis.EXPERT_MLP))
        or (len(tensor.dimensions) == 3 and tensor.dimensions[0].length == experts)
    }

    def part(tensor: MappedTensor, size: Polynomial) -> Polynomial:
        if tensor.module not in routed:
            return size
        if not tensor.has(Axis.EXPERTS):  # the experts axis cannot be cut in this class
            return size * Fraction(top_k, experts)
        return size.replaced(Axis.EXPERTS, Polynomial.constant(top_k))

    return part
