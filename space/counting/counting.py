"""What an architecture costs, in closed form from the axis map, nothing built.

Each count is a polynomial in the sizes of the axes and the numbers of layers of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

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
    """How many of the routed experts work on a token.

    Raises:
        InputError: the config does not say.
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
    """In how many groups experts are routed; each keeps an equal share of its experts."""
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
    """A token is sent to so many; in groups, those that it may choose from have to hold as many.

    Groups are chosen by their two best experts, so that each has to have two.
    """
    chosen, groups = experts_per_token(axis_map), expert_groups(axis_map)
    if groups == 1:
        return chosen
    open_groups = read_field(axis_map.config, "topk_group") or groups
    return groups * max(2, -(-chosen // open_groups))


def parameter_polynomial(axis_map: AxisMap) -> Polynomial:
    """The number of parameters of a student of this teacher, tied weights once, buffers not."""
    return sum_of_tensors(axis_map, _parameters(axis_map))


def non_embedding_polynomial(axis_map: AxisMap) -> Polynomial:
    """The parameters without those that grow with the vocabulary or the context.

    Left out are the tables of token and position embeddings and the output head, tied to the former or not.
    """
    uses = parameter_uses(axis_map)
    kept = (t for t in _parameters(axis_map) if t.name not in uses.tables | uses.head)
    return sum_of_tensors(axis_map, kept)


def active_polynomial(axis_map: AxisMap) -> Polynomial:
    """The parameters that take part in the work on one token.

    Of the routed experts those count that a token is sent to; everything else counts whole, the router and
    all of the embedding table included, as is usual where models are named by their active parameters.

    Raises:
        InputError: the config of a mixture does not say how many experts a token is sent to.
    """
    return sum_of_tensors(axis_map, _parameters(axis_map), _active(axis_map))


def matrix_polynomial(axis_map: AxisMap) -> Polynomial:
    """The weights that each token is multiplied with: all matrices but those that are looked up.

    With tied embeddings the table serves as the head too, and counts once; of the routed experts
    those count that a token is sent to.
    """
    uses = parameter_uses(axis_map)
    left_out = (uses.tables - uses.head) | uses.vectors
    kept = (t for t in _parameters(axis_map) if t.name not in left_out)
    return sum_of_tensors(axis_map, kept, _active(axis_map))


def cache_polynomial(
    axis_map: AxisMap, tokens: int | None = None, kept: Sequence[int] | None = None
) -> Polynomial:
    """Numbers in the KV cache, over all layers.

    In a layer that makes keys and values of its own each token takes the rows that make them; a layer
    that shares those of another takes none. A class that compresses them (``kv_lora_rank``) caches them
    compressed. States of state-space and linear-attention layers, which do not grow, are left out.

    Args:
        axis_map: the teacher's.
        tokens: of one sequence, of which a layer with a sliding window keeps one fewer than the window;
            by default what a token takes before any window is full.
        kept: the layers that a student keeps, where windows differ among layers of one kind; by
            default every kind of layer has the teacher's on average.
    """

    def stored(window: int | None) -> Fraction:
        return Fraction(1 if tokens is None else min(tokens, window - 1) if window else tokens)

    return sum_of_layers(axis_map, Attention(axis_map).cached, stored, kept)


def decode_flops(axis_map: AxisMap, context: int, kept: Sequence[int] | None = None) -> Polynomial:
    """Floating-point operations to make one token after ``context`` others.

    Two for each weight of a matrix, and for each head and token attended to, itself among them, two
    for each entry of a key and of a value. A layer with a sliding window attends to no more than the
    window. Compressed keys and values are expanded for every token attended to. The recurrences of
    state-space and linear-attention layers are left out.

    Args:
        axis_map: the teacher's.
        context: tokens before the one that is made.
        kept: as for ``cache_polynomial``.
    """

    def attended(window: int | None) -> Fraction:
        return Fraction(min(window or context + 1, context + 1))

    attention = Attention(axis_map)
    products = sum_of_layers(axis_map, attention.products, attended, kept)
    others = sum_of_layers(axis_map, attention.expansion, lambda window: attended(window) - 1, kept)
    return matrix_polynomial(axis_map) * 2 + products + others


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

    products = sum_of_layers(axis_map, Attention(axis_map).products, mean, kept)
    return matrix_polynomial(axis_map) * 2 + products


@dataclass(frozen=True)
class ParameterUses:
    """What some parameters are for, by name; told by the class itself."""

    tables: frozenset[str]
    """Looked up by token or position."""
    head: frozenset[str]
    """Of the output head; a tied weight under its first name."""
    vectors: frozenset[str]
    """Biases, and whatever norms hold: added or scaled with, entry by entry."""


def parameter_uses(axis_map: AxisMap) -> ParameterUses:
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
    return ParameterUses(frozenset(tables), frozenset(of_head), frozenset(vectors))


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


def _parameters(axis_map: AxisMap) -> list[MappedTensor]:
    return [tensor for tensor in axis_map.tensors if tensor.name not in axis_map.buffers]


def _active(axis_map: AxisMap) -> Part:
    """Counts of routed experts only those that a token is sent to."""
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
        if not tensor.has(Axis.EXPERTS):  # the class has experts that are not cut
            return size * Fraction(top_k, experts)
        return size.replaced(Axis.EXPERTS, Polynomial.constant(top_k))

    return part
