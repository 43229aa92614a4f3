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
from evaluators.importance.activations import ActivationListener, all_reduced, process_share
from evaluators.importance.aggregation import ALL, Aggregation
from evaluators.importance.collected import ranking_of
from evaluators.importance.kept_coordinates import SAMPLE_TOKENS, BasisLoss, finals_of
from evaluators.importance.layer_cost import scored_apart
from evaluators.importance.layer_passes import DepthSetting
from evaluators.importance.layer_removal import BoundaryCosines
from evaluators.importance.layer_scores import (
    Judge,
    LayerScores,
    check_depth,
    layer_sample,
    layer_scores,
    layers_fingerprint,
    scores_by_cosines,
)
from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.precision import products
from evaluators.importance.taylor import check_width, taylor_scores
from evaluators.importance.unit_scores import Scores, magnitudes, random_scores
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.ranking import Ranking

_DEFAULT = Method()
_TOKENS_AT_ONCE = 4096


def ranking_fingerprint(teacher: str, calibration: Tensor, method: Method = _DEFAULT) -> str:
    """Return a hash of all that a ranking depends on: teacher fingerprint, calibration blocks, method."""
    return fingerprint(teacher, calibration, method.words, layers_fingerprint(teacher, calibration, method))


def batches(calibration: Tensor) -> tuple[Tensor, ...]:
    """Split the N blocks of (N, T) into batches for the teacher; none if N is 0."""
    return calibration.split(max(1, _TOKENS_AT_ONCE // calibration.shape[1])) if len(calibration) else ()


@torch.no_grad()
def rank(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    advance: Callable[[float], None] = lambda blocks: None,
    method: Method = _DEFAULT,
    accelerator: Accelerator | None = None,
    judge: Judge | None = None,
    layers: LayerScores | None = None,
) -> Ranking:
    """Rank the units of every axis, by default in one forward-only pass.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token ids; each block is one sample of the batch.
        fingerprint: from ``ranking_fingerprint``.
        advance: called with this process's blocks × forward passes after each batch, or part of its passes.
        method: how to score; bases other than coordinates need ``axis_map.stream``.
        accelerator: of the processes that share the blocks, each of which holds the whole teacher; all return
            the same ranking. None if there is only one process.
        judge: the task, if layers are scored by one.
        layers: scores of the layers by passes of their own, if they are there already.

    Raises:
        InputError: as for ``rank_in_bases``.
    """
    check_depth(method, judge, calibration)
    if layers is None and scored_apart(method):
        layers = score_layers(model, axis_map, calibration, method, advance, accelerator, judge)
    keys = {method.basis: fingerprint}
    found = rank_in_bases(model, axis_map, calibration, keys, advance, method, accelerator, layers)
    return found[method.basis]


@torch.no_grad()
def score_layers(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    method: Method,
    advance: Callable[[float], None] = lambda blocks: None,
    accelerator: Accelerator | None = None,
    judge: Judge | None = None,
) -> LayerScores:
    """Score layers by passes of their own over a sample of the calibration set; the same in every basis.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's.
        calibration: (N, T) token ids.
        method: one whose layers the ranking's pass does not score.
        advance: called with blocks × forward passes; see ``forward_passes``.
        accelerator: as for ``rank``.
        judge: the task, if layers are scored by one.

    Raises:
        InputError: the method cannot score these layers, or a score is not finite.
    """
    check_depth(method, judge, calibration)
    own_batches = batches(process_share(layer_sample(calibration), accelerator))
    setting = DepthSetting(model, axis_map, own_batches, accelerator=accelerator, advance=advance)
    return layer_scores(setting, method, judge)


@torch.no_grad()
def rank_in_bases(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprints: Mapping[BasisName, str],
    advance: Callable[[float], None] = lambda blocks: None,
    method: Method = _DEFAULT,
    accelerator: Accelerator | None = None,
    layers: LayerScores | None = None,
    pass_context: AbstractContextManager[None] | None = None,
) -> dict[BasisName, Ranking]:
    """Rank the units of every axis in several bases of hidden from the same pass over the calibration set.

    Only hidden is ranked differently: the teacher computes the same function in all of them.

    Args:
        model: the teacher, in evaluation mode.
        axis_map: the teacher's; with ``stream`` if a basis is not coordinates.
        calibration: (N, T) token ids; each block is one sample of the batch.
        fingerprints: from ``ranking_fingerprint``, by basis.
        advance: called with the number of this process's blocks after each batch.
        method: how to score; its basis does not count.
        accelerator: as for ``rank``.
        layers: scores of the layers; None for block influence, which the same pass gives.
        pass_context: entered around the forward pass, for further hooks that collect from the same pass.

    Raises:
        InputError: activations, weights, gradients or scores are not finite, the class computes with an axis
            in an unknown way, or the method cannot score these layers or units.
    """
    assert method.rounds == 1, "rounds of scoring and pruning are those of rank_in_rounds"
    check_width(method, calibration)
    rotated = any(basis is not BasisName.COORDINATE for basis in fingerprints)
    listener = ActivationListener(model, axis_map, aggregations(method), covariance=rotated)
    cosines = BoundaryCosines(model, axis_map)
    own_batches = batches(process_share(calibration, accelerator))
    cosine_hooks = cosines.on() if method.depth is Depth.BLOCK_INFLUENCE else nullcontext()
    with listener.on(), cosine_hooks, pass_context or nullcontext(), products(model, method.bfloat16):
        _run(listener, own_batches if needs_forward_pass(method, rotated=rotated) else (), advance)
    widths = _other_width_scores(model, axis_map, own_batches, method, accelerator)
    listener = all_reduced(listener, accelerator)
    if method.depth is Depth.BLOCK_INFLUENCE:
        layers = scores_by_cosines(DepthSetting(model, axis_map, (), accelerator=accelerator), cosines)
    sample = batches(process_share(layer_sample(calibration, SAMPLE_TOKENS), accelerator))
    loss = BasisLoss(model, axis_map, lambda: finals_of(model, sample), accelerator)
    rankings = {
        basis: ranking_of(listener, key, replace(method, basis=basis), widths=widths, basis_loss=loss)
        for basis, key in fingerprints.items()
    }
    return {basis: layers.given_to(of) if layers else of for basis, of in rankings.items()}


@torch.no_grad()
def rank_all(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    teacher: str,
    advance: Callable[[float], None] = lambda blocks: None,
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


def needs_forward_pass(method: Method, *, rotated: bool) -> bool:
    """Whether the ranking needs activations; scores by weights, gradients or chance alone do not.

    Args:
        method: how to score.
        rotated: whether a basis other than coordinates is wanted.
    """
    layers = method.depth in (Depth.INFLUENCE, Depth.BLOCK_INFLUENCE)
    return bool(aggregations(method)) or layers or rotated


def _run(listener: ActivationListener, batches: Sequence[Tensor], advance: Callable[[float], None]) -> None:
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
