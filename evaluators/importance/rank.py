"""One forward pass over the calibration set, and every axis of the teacher is ranked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.fingerprint import fingerprint
from evaluators.importance.activations import WORDS, Listener, unheard
from evaluators.importance.covariance import reading
from evaluators.importance.gathering import gathered, share
from evaluators.importance.method import Method
from space.architecture import Axis
from space.axis_map import AxisMap
from space.basis import Basis, BasisName, basis_of
from space.experts import expert_groups
from space.input_error import InputError
from space.ranking import Ranking

_DEFAULT = Method()
TOKENS_AT_ONCE = 4096


def ranking_fingerprint(teacher: str, calibration: Tensor, method: Method = _DEFAULT) -> str:
    """What a ranking depends on: the teacher's fingerprint, the calibration blocks, the method."""
    return fingerprint(teacher, calibration, method.words)


@torch.no_grad()
def rank(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    advance: Callable[[int], None] = lambda blocks: None,
    method: Method = _DEFAULT,
    accelerator: Accelerator | None = None,
) -> Ranking:
    """Rank the units of every axis in one forward-only pass.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token numbers; each block is one sample of the batch.
        fingerprint: from ``ranking_fingerprint``.
        advance: told the number of blocks after each batch, those of this process alone.
        method: how; bases other than coordinates need ``axis_map.stream``.
        accelerator: of the processes that share the blocks among them, each with the whole teacher; every
            one of them returns the same ranking. None for this process alone.

    Raises:
        InputError: activations are not finite, or the class computes with an axis in an unknown way.
    """
    listener = Listener(model, axis_map)
    with listener.on():
        for batch in share(calibration, accelerator).split(max(1, TOKENS_AT_ONCE // calibration.shape[1])):
            listener.read(batch.to(model.device, torch.long))
            advance(len(batch))
    return ranking_of(gathered(listener, accelerator), fingerprint, method)


def ranking_of(
    listener: Listener, fingerprint: str, method: Method, read_by: Callable[[Tensor], Tensor] | None = None
) -> Ranking:
    """What was heard as a ranking.

    Args:
        listener: that has heard the whole calibration set.
        fingerprint: from ``ranking_fingerprint``.
        method: as for ``rank``.
        read_by: of the covariance (D, D), how the stream is read, as in ``covariance.reading``; by default
            that of the listener's model, whose weights then have to be there.

    Raises:
        InputError: as for ``rank``.
    """
    axis_map = listener.axis_map
    return Ranking(
        scores={axis: _finite(scores, axis) for axis, scores in scores_of(listener).items()},
        kv_heads=axis_map.teacher.kv_heads,
        method=method.words,
        fingerprint=fingerprint,
        expert_groups=expert_groups(axis_map),
        basis=_basis(listener, method.basis, read_by),
    )


def _basis(
    listener: Listener, name: BasisName, read_by: Callable[[Tensor], Tensor] | None
) -> Basis | None:
    if name is BasisName.COORDINATE:
        return None
    model, axis_map, covariance = listener.model, listener.axis_map, listener.covariance.mean
    assert axis_map.stream is not None, "only a stream that can be turned has a basis"
    if not bool(torch.isfinite(covariance).all()):
        raise _not_finite("the residual stream")
    if read_by is None:
        return basis_of(name, covariance, reading(model, axis_map, axis_map.stream, covariance))
    return basis_of(name, covariance, read_by(covariance))


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
        raise _not_finite(f"the scores of {WORDS[axis]}")
    return scores.float()


def _not_finite(what: str) -> InputError:
    return InputError(
        "The teacher's activations have to be finite on the calibration set",
        f"{what} are not" if what.startswith("the scores") else f"{what} is not",
        "Try --dtype float32, or another teacher",
    )
