"""One forward pass over the calibration set, and every axis of the teacher is ranked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.fingerprint import fingerprint
from evaluators.importance.activations import WORDS, Listener, unheard
from space.architecture import Axis
from space.axis_map import AxisMap
from space.input_error import InputError
from space.layout import Each
from space.ranking import Ranking

METHOD = (
    "activations, batch = L2, sequence = mean; routed experts by the L2 norm over their tokens; "
    "layers by block influence"
)
_TOKENS_AT_ONCE = 4096


def ranking_fingerprint(teacher: str, calibration: Tensor) -> str:
    """What a ranking depends on: the teacher's fingerprint, the calibration blocks, the method."""
    return fingerprint(teacher, calibration, METHOD)


@torch.no_grad()
def rank(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    advance: Callable[[int], None] = lambda blocks: None,
) -> Ranking:
    """Rank the units of every axis in one forward-only pass.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token numbers; each block is one sample of the batch.
        fingerprint: from ``ranking_fingerprint``.
        advance: told the number of blocks after each batch.

    Raises:
        InputError: activations are not finite, or the class computes with an axis in an unknown way.
    """
    listener = Listener(model, axis_map)
    with listener.on():
        for batch in calibration.split(max(1, _TOKENS_AT_ONCE // calibration.shape[1])):
            listener.read(batch.to(model.device, torch.long))
            advance(len(batch))
    return Ranking(
        scores={axis: _finite(scores, axis) for axis, scores in scores_of(listener).items()},
        kv_heads=axis_map.teacher.kv_heads,
        method=METHOD,
        fingerprint=fingerprint,
        expert_groups=_expert_groups(axis_map),
    )


def scores_of(listener: Listener) -> dict[Axis, Tensor]:
    """What was heard as the scores of ``Ranking``, in float64 and in the order in which they are checked."""
    axis_map, influences = listener.axis_map, listener.influences
    scores = _of_hidden(listener)
    for axis in (Axis.MLP, Axis.SHARED_MLP, Axis.HEADS, Axis.HEAD_DIM):
        norms = {layer: squares.norm for (of, layer), squares in listener.squares.items() if of is axis}
        scores |= _of_layers(axis_map, axis, norms, (axis_map.teacher[axis],))
    size = (axis_map.teacher.experts, axis_map.teacher.expert_mlp)
    whole = {layer: squares.whole for layer, squares in listener.experts.items()}
    neurons = {layer: squares.neurons for layer, squares in listener.experts.items()}
    scores |= _of_layers(axis_map, Axis.EXPERTS, whole, size[:1])
    scores |= _of_layers(axis_map, Axis.EXPERT_MLP, neurons, size)
    return scores | {Axis.LAYERS: torch.tensor([influence.value for influence in influences])}


def _of_hidden(listener: Listener) -> dict[Axis, Tensor]:
    """(D,) scores of hidden, summed over all norms, if it moves any tensor."""
    if not any(tensor.has(Axis.HIDDEN) for tensor in listener.axis_map.tensors):
        return {}
    heard = [squares.norm for squares in listener.norms.values() if squares.total is not None]
    if not heard:
        raise unheard(listener.axis_map, "the norms of the residual stream")
    return {Axis.HIDDEN: torch.stack(heard).sum(0)}


def _of_layers(
    axis_map: AxisMap, axis: Axis, heard: dict[int, Tensor], shape: tuple[int, ...]
) -> dict[Axis, Tensor]:
    """(L, ...) scores of an axis that moves any tensor, with zeros for layers that lack it."""
    layers = {tensor.layer for tensor in axis_map.tensors if tensor.layer is not None and tensor.has(axis)}
    if silent := sorted(layers - heard.keys()):
        raise unheard(axis_map, f"{WORDS[axis]} of layer {silent[0]}")
    nothing = torch.zeros(shape, dtype=torch.float64)
    rows = [heard[layer] if layer in layers else nothing for layer in range(axis_map.teacher.layers)]
    return {axis: torch.stack(rows)} if layers else {}


def _finite(scores: Tensor, axis: Axis) -> Tensor:
    """The scores as float32, or a message if any is not finite."""
    if not bool(torch.isfinite(scores).all()):
        raise InputError(
            "The teacher's activations have to be finite on the calibration set",
            f"the scores of {WORDS[axis]} are not",
            "Try --dtype float32, or another teacher",
        )
    return scores.float()


def _expert_groups(axis_map: AxisMap) -> int:
    """Groups that experts are routed in, as the layouts have them; 1 where there are none."""
    for tensor in axis_map.tensors:
        for layout in tensor.dimensions:
            match layout:
                case Each(None, groups, Each(Axis.EXPERTS)):
                    return groups
    return 1
