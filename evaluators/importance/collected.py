"""From the statistics of a forward pass to the scores of every axis, and to a ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from evaluators.importance.activations import WORDS, ActivationListener, missing_activations
from evaluators.importance.aggregation import Aggregation
from evaluators.importance.kept_coordinates import fitting_basis
from evaluators.importance.method import Method, Width
from evaluators.importance.moments import reader_weighting
from evaluators.importance.unit_scores import layers_with, score_rows
from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, ResidualStream
from space.counting.counting import expert_groups
from space.cutting.basis import Basis, BasisName, UnfoldedNorm, basis_of, outlier_shares
from space.cutting.ranking import Ranking, descending
from space.input_error import InputError


def ranking_of(
    listener: ActivationListener,
    fingerprint: str,
    method: Method,
    weighting: Callable[[Tensor], Tensor] | None = None,
    widths: Mapping[Axis, Tensor] | None = None,
    basis_loss: Callable[[Basis | None], float] | None = None,
) -> Ranking:
    """Make a ranking of the collected statistics.

    Args:
        listener: that has collected from the whole calibration set.
        fingerprint: from ``ranking_fingerprint``.
        method: as for ``rank``.
        weighting: computes ``reader_weighting`` from the covariance (D, D); by default from the weights of
            the listener's model, which then have to be in memory.
        widths: scores of all axes but LAYERS, in place of the listener's.
        basis_loss: measures the whole teacher in a basis; needed if some norms cannot be folded.

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
        basis=_basis(listener, method.basis, weighting, basis_loss),
    )


def _basis(
    listener: ActivationListener,
    name: BasisName,
    weighting: Callable[[Tensor], Tensor] | None,
    loss: Callable[[Basis | None], float] | None,
) -> Basis | None:
    if name is BasisName.COORDINATE:
        return None
    model, axis_map, covariance = listener.model, listener.axis_map, listener.covariance.mean
    assert axis_map.stream is not None, "only a stream that can be turned has a basis"
    if not bool(torch.isfinite(covariance).all()):
        raise _not_finite("the residual stream")
    stream = axis_map.stream
    read = weighting(covariance) if weighting else reader_weighting(model, axis_map, stream, covariance)
    norms = _unfolded(listener, stream)
    if not norms:
        return basis_of(name, covariance, read, stream.centred)
    assert loss is not None, "what a basis costs has to be measured where a norm cannot be folded"
    order = descending(outlier_shares(norms)).tolist()

    def keeping(number: int) -> Basis:
        return basis_of(name, covariance, read, stream.centred, order[:number], norms)

    return fitting_basis(keeping, loss, axis_map.teacher.hidden)


def _unfolded(listener: ActivationListener, stream: ResidualStream) -> dict[str, UnfoldedNorm]:
    """Return the norms that cannot be folded, with the moments that the listener has collected."""
    return {
        name: UnfoldedNorm(
            listener.model.get_parameter(name).detach().cpu().double() + stream.offset, second.mean
        )
        for name, second in listener.unfolded.items()
    }


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
