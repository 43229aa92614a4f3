"""Measure on a tiny copy what shapes do not show of a class.

``measure_scales``: the powers of the hidden size by which the class multiplies embeddings and logits.
``token_mixing_modules``: the attention output projections. Without a head size field, hidden and heads have
the same length; but the input of such a projection changes at one token when another token changes.
``find_residual_stream``: the matrices that read each norm. When each dimension of a norm's output is scaled
by a factor of its own, the input of its readers is scaled by exactly these factors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, ResidualStream, Scales, layer_modules, wildcard_name
from space.cutting.basis import centred_rotation, fold_norms, helmert, rotate_stream
from space.cutting.extraction import saved_tensors
from space.cutting.product_tracing import ProductTracer, TracedProduct
from space.verification.contract import TOLERANCE, distance, logits_of

#: Coordinates that a random rotation keeps where some norms cannot be folded.
_KEPT = 2


@torch.no_grad()
def measure_scales(
    wide: PreTrainedModel, narrow: PreTrainedModel, axis_map: AxisMap, narrow_hidden: int
) -> Scales:
    """Measure the powers of the hidden size by which a class multiplies embeddings and logits.

    Args:
        wide: a small model with random weights.
        narrow: a model of the same class with fewer hidden dimensions.
        axis_map: the map of ``wide``.
        narrow_hidden: the hidden size of ``narrow``.
    """
    ratio = math.log(axis_map.teacher.hidden / narrow_hidden)

    def power(of: Any) -> float:
        factors = of(wide), of(narrow)
        if not all(factors) or not ratio:
            return 0.0
        found = math.log(factors[0] / factors[1]) / ratio
        return round(found, 3) if abs(found) > 1e-3 else 0.0

    return replace(
        axis_map.scales,
        embedding=power(lambda model: _embedding_factor(model, axis_map)),
        head=power(lambda model: _head_factor(model, axis_map)),
        norm_offset=_norm_offset(wide, axis_map),
    )


def _embedding_factor(model: PreTrainedModel, axis_map: AxisMap) -> float:
    """Return by what factor first-layer inputs of two tokens differ more than their embeddings; 0 if none."""
    seen: list[Tensor] = []

    def note(_: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        seen.append((arguments[0] if arguments else keywords["hidden_states"]).clone())

    handle = layer_modules(model, axis_map)[0].register_forward_pre_hook(note, with_kwargs=True)
    try:
        for token in (1, 2):
            model(input_ids=torch.tensor([[token]]), use_cache=False)
    finally:
        handle.remove()
    table = model.get_parameter(axis_map.roles.embedding)
    given, found = (table[1] - table[2]), (seen[0] - seen[1]).flatten()
    if given.shape != found.shape:
        return 0.0
    factor = float(found @ given / (given @ given))
    return factor if factor > 0 and torch.allclose(found, factor * given, rtol=1e-3, atol=1e-4) else 0.0


def _head_factor(model: PreTrainedModel, axis_map: AxisMap) -> float:
    """Return the factor from states @ head.T to logits, with weights too small for a soft cap; 0 if none."""
    head, norm = model.get_output_embeddings(), axis_map.roles.final_norm
    body = model.base_model
    if body is model and norm is not None:
        body = model.get_submodule(norm.rpartition(".")[0])
    if not isinstance(head, nn.Linear) or body is model:
        return 0.0
    whole, seen = head.weight.clone(), []
    handle = body.register_forward_hook(
        lambda _, __, output: seen.append(output if isinstance(output, Tensor) else output[0])
    )
    try:
        head.weight.mul_(1e-4)
        logits = model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits
        plain = seen[0] @ head.weight.T
    finally:
        handle.remove()
        head.weight.copy_(whole)
    if head.bias is not None:
        logits = logits - head.bias
    factor = float(logits.flatten() @ plain.flatten() / plain.norm() ** 2)
    return factor if factor > 0 and torch.allclose(logits, factor * plain, rtol=1e-2, atol=1e-7) else 0.0


def _norm_offset(model: PreTrainedModel, axis_map: AxisMap) -> float:
    """Measure what the final norm adds to its weight: 0 in most classes, 1 in some (Gemma)."""
    name = axis_map.roles.final_norm
    if name is None:
        return 0.0
    norm = copy.deepcopy(model.get_submodule(name.rpartition(".")[0]))
    outputs = []
    for value in (0.0, 1.0):
        for kind, parameter in norm.named_parameters():
            parameter.fill_(0.0 if kind == "bias" else value)
        states = torch.linspace(-1, 2, axis_map.teacher.hidden)[None, None]
        outputs.append(float(norm(states).abs().sum()))
    zero, one = outputs
    return round(zero / (one - zero), 3) if one != zero else 0.0


@torch.no_grad()
def token_mixing_modules(model: PreTrainedModel, layers: list[nn.Module], tokens: Tensor) -> frozenset[str]:
    """Find the first linear module of each layer whose input mixes tokens; ``*`` stands for layer numbers.

    Args:
        model: a small model of the class, with random weights, in evaluation mode.
        layers: its decoder layers.
        tokens: (1, T) token ids, T > 1.
    """
    inputs: list[Tensor] = []
    with _recorded_layer_inputs(layers, inputs, None):
        before = _linear_inputs(model, layers, tokens)
    changed = [states.clone() for states in inputs]
    for states in changed:
        states[:, 0] += torch.linspace(-1, 1, states.shape[-1])
    with _recorded_layer_inputs(layers, [], changed):
        after = _linear_inputs(model, layers, tokens)
    mixed: dict[int, str] = {}
    for name, states in before.items():
        layer = int(next(part for part in name.split(".") if part.isdigit()))
        if name in after and not torch.equal(states[:, 1:], after[name][:, 1:]):
            mixed.setdefault(layer, name)
    return frozenset(wildcard_name(f"{name}.weight").removesuffix(".weight") for name in mixed.values())


def _linear_inputs(model: PreTrainedModel, layers: list[nn.Module], tokens: Tensor) -> dict[str, Tensor]:
    """Run the model and return the input (1, T, width) of each linear module inside the layers."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D)):

            def note(_: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
                if arguments and arguments[0].ndim == 3 and arguments[0].shape[1] == tokens.shape[1]:
                    seen[name] = arguments[0].clone()

            handles.append(module.register_forward_pre_hook(note))
    try:
        model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def _recorded_layer_inputs(
    layers: list[nn.Module], recorded: list[Tensor], replaced: list[Tensor] | None
) -> Iterator[None]:
    """Within the context, record the input of each layer, and replace it if replacements are given."""
    handles = []
    for number, layer in enumerate(layers):

        def swap(_: nn.Module, arguments: Any, keywords: dict[str, Any], number: int = number) -> Any:
            states = arguments[0] if arguments else keywords["hidden_states"]
            recorded.append(states)
            if replaced is None:
                return None
            if arguments:
                return (replaced[number], *arguments[1:]), keywords
            return arguments, keywords | {"hidden_states": replaced[number]}

        handles.append(layer.register_forward_pre_hook(swap, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_stream(axis_map: AxisMap, small: AxisMap, model: PreTrainedModel, tokens: Tensor) -> AxisMap:
    """Add the residual stream to the map, if a random rotation of it in the small copy keeps the logits.

    Where norms cannot be folded, it keeps two coordinates, and their other weights are made equal first: such
    a norm is the same in any basis of these coordinates.

    Args:
        axis_map: the map of the teacher.
        small: the map of its small copy.
        model: the small copy.
        tokens: (B, T) token ids to run it on.

    Returns:
        The map; its ``stream`` is None if the class does not allow a rotation.
    """
    stream, size = find_residual_stream(model, small, tokens), small.teacher.hidden
    turned = range(_KEPT if stream.unfolded else 0, size)
    level = copy.deepcopy(model)
    for tensor in small.tensors:
        if wildcard_name(tensor.name) in stream.unfolded:
            nn.init.constant_(level.get_parameter(tensor.name)[turned.start :], 1 - stream.offset)
    rotation = torch.eye(size)
    rotation[turned.start :, turned.start :] = random_rotation(len(turned), stream.centred, seed=0)
    weights = rotate_stream(fold_norms(saved_tensors(level, small), small, stream), small, stream, rotation)
    other = copy.deepcopy(level)
    other.load_state_dict(weights, strict=False)
    apart = distance(logits_of(other, tokens), logits_of(level, tokens))
    return replace(axis_map, stream=stream) if apart < TOLERANCE else axis_map


def random_rotation(size: int, centred: bool, seed: int) -> Tensor:
    """Return a random orthogonal matrix (D, D) in float32; if ``centred``, it keeps the mean's direction."""
    generator = torch.Generator().manual_seed(seed)
    inner = size - centred
    rotation: Tensor = torch.linalg.qr(torch.randn(inner, inner, generator=generator).double())[0]
    if centred:
        rotation = centred_rotation(helmert(size)[:, :-1] @ rotation)
    return rotation.float()


def find_residual_stream(model: PreTrainedModel, axis_map: AxisMap, tokens: Tensor) -> ResidualStream:
    """Find the matrices that read each norm, and the norms that no matrix reads alone.

    Args:
        model: a small model with random weights, in evaluation mode.
        axis_map: its map.
        tokens: (B, T) token ids to run it on.
    """
    norms = [
        t for t in axis_map.tensors if t.axes == (frozenset({Axis.HIDDEN}),) and t.name.endswith("weight")
    ]
    before = _matrix_inputs(model, axis_map, tokens)
    offset = axis_map.scales.norm_offset
    readers: dict[str, tuple[str, ...]] = {}
    for norm in norms:
        weight = model.get_parameter(norm.name)
        whole = weight.detach().clone()
        factors = 1 + 1e-3 * torch.rand(len(whole), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            weight.copy_((whole + offset) * factors - offset)
            bias = getattr(model.get_submodule(norm.module), "bias", None)
            added = None if bias is None else bias.detach().clone()
            if bias is not None:
                bias.mul_(factors)
            after = _matrix_inputs(model, axis_map, tokens)
            weight.copy_(whole)
            if bias is not None:
                bias.copy_(added)
        found = [name for name in before if _scaled_by(before[name], after.get(name, []), factors)]
        readers[wildcard_name(norm.name)] = tuple(
            sorted(set(readers.get(wildcard_name(norm.name), ())) | set(map(wildcard_name, found)))
        )
    tied = axis_map.roles.embedding if axis_map.roles.head == axis_map.roles.embedding else None
    unfolded = tuple(name for name, reading in readers.items() if not reading or tied in reading)
    modules = [model.get_submodule(norm.module) for norm in norms if readers[wildcard_name(norm.name)]]
    centred = bool(modules) and all(map(_subtracts_the_mean, modules))
    folded = {name: reading for name, reading in readers.items() if name not in unfolded}
    behind = {name for reading in readers.values() for name in reading}
    bare = tuple(dict.fromkeys(name for name in map(wildcard_name, before) if name not in behind))
    return ResidualStream(folded, offset, centred, unfolded, bare)


@torch.no_grad()
def _subtracts_the_mean(norm: nn.Module) -> bool:
    size = len(next(norm.parameters()))
    states = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    return bool(torch.allclose(norm(states), norm(states + 1), atol=1e-4))


@torch.no_grad()
def _matrix_inputs(model: PreTrainedModel, axis_map: AxisMap, tokens: Tensor) -> dict[str, list[Tensor]]:
    """Run the model and return, for every matrix, its inputs along hidden in the order of the products."""
    seen: dict[str, list[Tensor]] = {}

    def record(product: TracedProduct) -> None:
        if Axis.HIDDEN in product.tensor.axes[product.dimension]:
            seen.setdefault(product.tensor.name, []).append(product.values.clone())

    matrices = [t for t in axis_map.tensors if len(t.dimensions) > 1 and t.name not in axis_map.buffers]
    with ProductTracer(model, matrices, record):
        model(input_ids=tokens, use_cache=False)
    return seen


def _scaled_by(before: list[Tensor], after: list[Tensor], factors: Tensor) -> bool:
    return len(before) == len(after) > 0 and all(
        one.shape == other.shape and torch.allclose(other, one * factors, rtol=1e-5, atol=1e-6)
        for one, other in zip(before, after, strict=True)
    )
