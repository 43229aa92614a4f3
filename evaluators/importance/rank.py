"""Rank the units of every axis of the teacher, by default from one forward pass over the calibration set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.corpus.blocks import fingerprint
from evaluators.importance.activations import (
    WORDS,
    ActivationListener,
    all_reduced,
    missing_activations,
    process_share,
)
from evaluators.importance.aggregation import ALL, Aggregation
from evaluators.importance.layer_passes import DepthSetting
from evaluators.importance.layer_removal import BoundaryCosines
from evaluators.importance.layer_scores import TaskScorer, check_depth, with_layer_scores
from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.moments import reader_weighting
from evaluators.importance.taylor import check_width, taylor_scores
from evaluators.importance.unit_scores import Scores, layers_with, magnitudes, random_scores, score_rows
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap
from space.counting.counting import expert_groups
from space.cutting.basis import Basis, BasisName, basis_of
from space.cutting.ranking import Ranking
from space.input_error import InputError

_DEFAULT = Method()
_TOKENS_AT_ONCE = 4096


def ranking_fingerprint(teacher: str, calibration: Tensor, method: Method = _DEFAULT) -> str:
    """Return a hash of all that a ranking depends on: teacher fingerprint, calibration blocks, method."""
    return fingerprint(teacher, calibration, method.words)


def batches(calibration: Tensor) -> tuple[Tensor, ...]:
    """Split the N blocks of (N, T) into batches for the teacher; none if N is 0."""
    return calibration.split(max(1, _TOKENS_AT_ONCE // calibration.shape[1])) if len(calibration) else ()


@torch.no_grad()
def rank(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    advance: Callable[[int], None] = lambda blocks: None,
    method: Method = _DEFAULT,
    accelerator: Accelerator | None = None,
    judge: TaskScorer | None = None,
    pass_context: AbstractContextManager[None] | None = None,
) -> Ranking:
    """Rank the units of every axis, by default in one forward-only pass.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token ids; each block is one sample of the batch.
        fingerprint: from ``ranking_fingerprint``.
        advance: called with the number of this process's blocks after each batch.
        method: how to score; bases other than coordinates need ``axis_map.stream``.
        accelerator: of the processes that share the blocks, each of which holds the whole teacher; all return
            the same ranking. None if there is only one process.
        judge: the benchmark, for ``Depth.BENCHMARK``.
        pass_context: entered around the forward pass, for further hooks that collect from the same pass.

    Raises:
        InputError: activations, weights, gradients or scores are not finite, the class computes with an axis
            in an unknown way, or the method cannot score these layers or units.
    """
    assert method.rounds == 1, "rounds of scoring and pruning are those of rank_in_rounds"
    check_depth(method, judge, calibration)
    check_width(method, calibration)
    rotated = method.basis is not BasisName.COORDINATE
    listener = ActivationListener(model, axis_map, aggregations(method), covariance=rotated)
    cosines = BoundaryCosines(model, axis_map)
    own_batches = batches(process_share(calibration, accelerator))
    cosine_hooks = cosines.on() if method.depth is Depth.BLOCK_INFLUENCE else nullcontext()
    with listener.on(), cosine_hooks, pass_context or nullcontext():
        _run(listener, own_batches if needs_forward_pass(method) else (), advance)
    widths = _other_width_scores(model, axis_map, own_batches, method, accelerator)
    ranking = ranking_of(all_reduced(listener, accelerator), fingerprint, method, widths=widths)
    setting = DepthSetting(model, axis_map, own_batches, accelerator=accelerator)
    return with_layer_scores(ranking, setting, method, cosines, judge)


@torch.no_grad()
def rank_all(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    teacher: str,
    advance: Callable[[int], None] = lambda blocks: None,
) -> dict[Aggregation, Ranking]:
    """Rank by activations with all nine aggregations, and by block influence, in one forward pass.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token ids; each block is one sample of the batch.
        teacher: the teacher's fingerprint.
        advance: called with the number of blocks after each batch.

    Raises:
        InputError: as for ``rank``.
    """
    listener = ActivationListener(model, axis_map, ALL)
    with listener.on():
        _run(listener, batches(calibration), advance)
    rankings = {}
    for aggregation in ALL:
        method = replace(_DEFAULT, batch=aggregation.batch, sequence=aggregation.sequence)
        key = ranking_fingerprint(teacher, calibration, method)
        rankings[aggregation] = ranking_of(listener, key, method)
    return rankings


def aggregations(method: Method) -> tuple[Aggregation, ...]:
    """Return the aggregations of activations that the method needs."""
    return (Aggregation(method.batch, method.sequence),) if method.width is Width.ACTIVATIONS else ()


def needs_forward_pass(method: Method) -> bool:
    """Whether the ranking needs activations; scores by weights, gradients or chance alone do not."""
    layers = method.depth in (Depth.INFLUENCE, Depth.BLOCK_INFLUENCE)
    return bool(aggregations(method)) or layers or method.basis is not BasisName.COORDINATE


def _run(listener: ActivationListener, batches: Sequence[Tensor], advance: Callable[[int], None]) -> None:
    """Run the model of the listener, which is on, over (B, T) batches."""
    for batch in batches:
        listener.read(batch.to(listener.model.device, torch.long))
        advance(len(batch))


def _other_width_scores(
    model: PreTrainedModel,
    axis_map: AxisMap,
    batches: Sequence[Tensor],
    method: Method,
    accelerator: Accelerator | None,
) -> Scores | None:
    """Return the scores of all axes but LAYERS by gradients, weights or chance; None if by activations."""
    match method.width:
        case Width.ACTIVATIONS:
            return None
        case Width.TAYLOR:
            return taylor_scores(model, axis_map, batches, accelerator)
        case Width.MAGNITUDE:
            return magnitudes(model, axis_map)
        case Width.RANDOM:
            return random_scores(axis_map, method.seed)


def ranking_of(
    listener: ActivationListener,
    fingerprint: str,
    method: Method,
    weighting: Callable[[Tensor], Tensor] | None = None,
    widths: Mapping[Axis, Tensor] | None = None,
) -> Ranking:
    """Make a ranking of the collected statistics.

    Args:
        listener: that has collected from the whole calibration set.
        fingerprint: from ``ranking_fingerprint``.
        method: as for ``rank``.
        weighting: computes ``reader_weighting`` from the covariance (D, D); by default from the weights of
            the listener's model, which then have to be in memory.
        widths: scores of all axes but LAYERS, in place of the listener's.

    Raises:
        InputError: as for ``rank``.
    """
    axis_map = listener.axis_map
    if widths is None:
        widths = widths_of(listener, Aggregation(method.batch, method.sequence))
    scores = {**widths, **layers_of(listener)}
    return Ranking(
        scores={axis: _finite(of, axis, method.width) for axis, of in scores.items()},
        kv_heads=axis_map.teacher.kv_heads,
        method=method.words,
        fingerprint=fingerprint,
        expert_groups=expert_groups(axis_map),
        basis=_basis(listener, method.basis, weighting),
    )


def _basis(
    listener: ActivationListener, name: BasisName, weighting: Callable[[Tensor], Tensor] | None
) -> Basis | None:
    if name is BasisName.COORDINATE:
        return None
    model, axis_map, covariance = listener.model, listener.axis_map, listener.covariance.mean
    assert axis_map.stream is not None, "only a stream that can be turned has a basis"
    if not bool(torch.isfinite(covariance).all()):
        raise _not_finite("the residual stream")
    stream = axis_map.stream
    read = weighting(covariance) if weighting else reader_weighting(model, axis_map, stream, covariance)
    return basis_of(name, covariance, read, stream.centred)


def scores_of(listener: ActivationListener, aggregation: Aggregation | None = None) -> dict[Axis, Tensor]:
    """Return the listener's scores of all axes in float64, by default by its first aggregation."""
    return {**widths_of(listener, aggregation or listener.aggregations[0]), **layers_of(listener)}


def layers_of(listener: ActivationListener) -> dict[Axis, Tensor]:
    """Return (L,) block influences by LAYERS; empty if none were collected."""
    influences = listener.influences
    if any(influence.cosines is None for influence in influences):
        return {}
    return {Axis.LAYERS: torch.tensor([influence.value for influence in influences])}


def widths_of(listener: ActivationListener, aggregation: Aggregation) -> dict[Axis, Tensor]:
    """Return the listener's scores of all axes but LAYERS, in float64.

    Routed experts and entries of heads are scored by the L2 norm over their tokens whatever the aggregation.
    """
    axis_map = listener.axis_map
    scores = _hidden_scores(listener, aggregation)
    for axis in (Axis.MLP, Axis.SHARED_MLP, Axis.HEADS):
        grids = {layer: grid.score(aggregation) for (of, layer), grid in listener.grids.items() if of is axis}
        scores |= _scores_by_layer(axis_map, axis, grids)
    entries = {layer: squares.norm for (_, layer), squares in listener.squares.items()}
    whole = {layer: squares.whole for layer, squares in listener.experts.items()}
    neurons = {layer: squares.neurons for layer, squares in listener.experts.items()}
    scores |= _scores_by_layer(axis_map, Axis.HEAD_DIM, entries)
    scores |= _scores_by_layer(axis_map, Axis.EXPERTS, whole)
    scores |= _scores_by_layer(axis_map, Axis.EXPERT_MLP, neurons)
    return scores


def _hidden_scores(listener: ActivationListener, aggregation: Aggregation) -> dict[Axis, Tensor]:
    """Return (D,) scores of hidden, summed over all norms; empty if no tensor has that axis."""
    if not any(tensor.has(Axis.HIDDEN) for tensor in listener.axis_map.tensors):
        return {}
    scores = [grid.score(aggregation) for grid in listener.norms.values() if grid.has_data]
    if not scores:
        raise missing_activations(listener.axis_map, "the norms of the residual stream")
    return {Axis.HIDDEN: torch.stack(scores).sum(0)}


def _scores_by_layer(axis_map: AxisMap, axis: Axis, scores: Mapping[int, Tensor]) -> dict[Axis, Tensor]:
    """Return (L, ...) scores of an axis, 0 for layers that lack it; empty if all do."""
    if missing := sorted(layers_with(axis_map, axis) - scores.keys()):
        raise missing_activations(axis_map, f"{WORDS[axis]} of layer {missing[0]}")
    return score_rows(axis_map, axis, scores)


def _finite(scores: Tensor, axis: Axis, width: Width) -> Tensor:
    """Return the scores as float32, or raise an InputError if any is not finite."""
    if not bool(torch.isfinite(scores.float()).all()):
        raise _not_finite(f"the scores of {WORDS[axis]}", Width.ACTIVATIONS if axis is Axis.LAYERS else width)
    return scores.float()


_FINITE_RULES = {
    Width.TAYLOR: "gradients have to be finite on the calibration set",
    Width.MAGNITUDE: "weights have to be finite",
}


def _not_finite(what: str, width: Width = Width.ACTIVATIONS) -> InputError:
    rule = _FINITE_RULES.get(width, "activations have to be finite on the calibration set")
    return InputError(
        f"The teacher's {rule}",
        f"{what} are not" if what.startswith("the scores") else f"{what} is not",
        "Try --dtype float32, or another teacher",
    )
