"""Finding out on a small copy who reads the residual stream behind which norm, and whether it can be turned.

Which matrices read which norm is found by behaviour: make a norm's output a little larger, each
dimension by a factor of its own, and its readers are those whose input grows by just these factors.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, Stream
from space.axes.scales import starred
from space.cutting.basis import among_centred, helmert
from space.cutting.extraction import saved_tensors
from space.cutting.reading import Read, Reading
from space.cutting.turning import folded, turned
from space.verification.trial import TOLERANCE, distance, logits_of


def with_stream(axis_map: AxisMap, small: AxisMap, model: PreTrainedModel, tokens: Tensor) -> AxisMap:
    """The map with what is needed to turn the stream, if a random turn of the small copy keeps its logits.

    Args:
        axis_map: of the teacher.
        small: of its small copy.
        model: the small copy, head and embedding apart.
        tokens: (B, T) to run it on.

    Returns:
        The map; its ``stream`` is None if the class does not allow to turn it.
    """
    stream = stream_of(model, small, tokens)
    rotation = random_rotation(small.teacher.hidden, stream.centred, seed=0)
    weights = turned(folded(saved_tensors(model, small), small, stream), small, stream, rotation)
    other = copy.deepcopy(model)
    other.load_state_dict(weights, strict=False)
    apart = distance(logits_of(other, tokens), logits_of(model, tokens))
    return replace(axis_map, stream=stream) if apart < TOLERANCE else axis_map


def random_rotation(size: int, centred: bool, seed: int) -> Tensor:
    """(D, D) float32 orthogonal; if the norms subtract the mean, one that keeps the direction of the mean."""
    generator = torch.Generator().manual_seed(seed)
    inner = size - centred
    rotation: Tensor = torch.linalg.qr(torch.randn(inner, inner, generator=generator).double())[0]
    if centred:
        rotation = among_centred(helmert(size)[:, :-1] @ rotation)
    return rotation.float()


def stream_of(model: PreTrainedModel, axis_map: AxisMap, tokens: Tensor) -> Stream:
    """Find the readers of every norm.

    Args:
        model: small, with real weights, head and embedding apart, in evaluation mode.
        axis_map: its map.
        tokens: (B, T) to run it on.
    """
    norms = [
        t for t in axis_map.tensors if t.axes == (frozenset({Axis.HIDDEN}),) and t.name.endswith("weight")
    ]
    before = _inputs(model, axis_map, tokens)
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
            after = _inputs(model, axis_map, tokens)
            weight.copy_(whole)
            if bias is not None:
                bias.copy_(added)
        found = [name for name in before if _grew(before[name], after.get(name, []), factors)]
        readers[starred(norm.name)] = tuple(
            sorted(set(readers.get(starred(norm.name), ())) | set(map(starred, found)))
        )
    modules = [model.get_submodule(norm.module) for norm in norms if readers[starred(norm.name)]]
    return Stream(readers, offset, bool(modules) and all(map(_subtracts_the_mean, modules)))


@torch.no_grad()
def _subtracts_the_mean(norm: nn.Module) -> bool:
    size = len(next(norm.parameters()))
    states = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    return bool(torch.allclose(norm(states), norm(states + 1), atol=1e-4))


@torch.no_grad()
def _inputs(model: PreTrainedModel, axis_map: AxisMap, tokens: Tensor) -> dict[str, list[Tensor]]:
    """What every matrix reads along hidden, product by product."""
    seen: dict[str, list[Tensor]] = {}

    def hear(read: Read) -> None:
        if Axis.HIDDEN in read.tensor.axes[read.dimension]:
            seen.setdefault(read.tensor.name, []).append(read.values.clone())

    matrices = [t for t in axis_map.tensors if len(t.dimensions) > 1 and t.name not in axis_map.buffers]
    with Reading(model, matrices, hear):
        model(input_ids=tokens, use_cache=False)
    return seen


def _grew(before: list[Tensor], after: list[Tensor], factors: Tensor) -> bool:
    return len(before) == len(after) > 0 and all(
        one.shape == other.shape and torch.allclose(other, one * factors, rtol=1e-5, atol=1e-6)
        for one, other in zip(before, after, strict=True)
    )
