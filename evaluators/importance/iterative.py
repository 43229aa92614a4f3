"""Iterative importance: score, prune part of the units, score the student, and so on for several rounds.

The result is an ordinary ranking of the teacher. Students of the target's sizes that are cut by it have
exactly the units that survived all rounds. Minitron (arXiv 2407.14679, section 2.2, table 14) found one
round as good as several, so one round is the default.

After each round the student's ranking is merged into the teacher's. The units that the student has come
first in every order, sorted by their new scores; the pruned units follow in their old order. New scores are
raised by a constant where necessary, so that they are above those of the pruned units.

Legend: as in ``space.cutting.ranking``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import pairwise

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.importance.layer_scores import Judge, LayerScores
from evaluators.importance.method import Method
from evaluators.importance.rank import rank
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, layers_kept, saved_tensors, sort_by_importance, student_map
from space.cutting.ranking import Ranking, descending
from space.cutting.rounds import architectures_between
from space.input_error import InputError

#: Relative margin by which the scores of surviving units are above those of pruned ones.
_GAP = 2.0**-20


class RankingMerge:
    """Merges a student's ranking into its teacher's.

    Args:
        axis_map: the teacher's.
        ranking: the teacher's ranking that the student was cut by.
        architecture: the student's sizes.
        layers: the teacher's layers that the student has.
    """

    def __init__(
        self, axis_map: AxisMap, ranking: Ranking, architecture: Architecture, layers: Sequence[int]
    ) -> None:
        self.axis_map, self.ranking, self.architecture, self.layers = axis_map, ranking, architecture, layers
        self.scores = {axis: of.double().clone() for axis, of in ranking.scores.items()}
        self.orders = {axis: of.clone() for axis, of in ranking.orders.items()}

    def with_scores(self, found: Ranking, axes: Collection[Axis]) -> Ranking:
        """Return the teacher's ranking with the student's scores merged in.

        Args:
            found: the student's ranking.
            axes: the axes to update; all others keep their scores.
        """
        for axis in axes & self.scores.keys() & found.scores.keys():
            if axis is Axis.HEADS:
                self._update_heads(found)
            elif axis is Axis.LAYERS:
                self._update_row(axis, (), torch.tensor(self.layers), found.scores[axis])
            else:
                for row, survivors, scores in self._rows(axis, found):
                    self._update_row(axis, row, survivors, scores)
        self._fix_ties()
        return replace(self.ranking, scores=self.scores)

    def _rows(self, axis: Axis, found: Ranking) -> Iterator[tuple[tuple[int, ...], Tensor, Tensor]]:
        """Yield for each row of scores its index, the survivors' teacher indices, and their new scores."""
        if axis is Axis.HIDDEN:
            yield (), self._survivors(axis, None, None), found.scores[axis]
            return
        for place, layer in enumerate(self.layers):
            scores = found.scores[axis][place]
            if axis is Axis.EXPERTS:
                for group, of in enumerate(scores.unflatten(-1, (self.ranking.expert_groups, -1))):
                    yield (layer, group), self._survivors(axis, layer, group), of
            elif axis is Axis.EXPERT_MLP:
                for expert, of in zip(self._experts(layer), scores, strict=True):
                    yield (layer, expert), self._survivors(axis, layer, expert), of
            else:
                yield (layer,), self._survivors(axis, layer, None), scores

    def _survivors(self, axis: Axis, layer: int | None, within: int | None) -> Tensor:
        """Return the teacher indices of the student's units, in the student's order."""
        order, student = self.ranking.order(axis, layer, within), self.architecture
        if axis not in self.axis_map.sortable:
            return torch.arange(len(order))
        if axis is Axis.HEADS:
            return order[: student.heads // student.kv_heads]
        return order[
            : student.experts // self.ranking.expert_groups if axis is Axis.EXPERTS else student[axis]
        ]

    def _experts(self, layer: int) -> list[int]:
        """Return the teacher indices of the student's experts."""
        groups, size = self.ranking.expert_groups, self.axis_map.teacher.experts // self.ranking.expert_groups
        return [
            group * size + expert
            for group in range(groups)
            for expert in self._survivors(Axis.EXPERTS, layer, group).tolist()
        ]

    def _update_row(self, axis: Axis, row: tuple[int, ...], survivors: Tensor, found: Tensor) -> None:
        scores = self.scores[axis]
        if axis is Axis.EXPERTS:
            scores = scores.unflatten(-1, (self.ranking.expert_groups, -1))
        order = _merged(self.orders[axis][row], survivors[descending(found)])
        self.orders[axis][row] = order
        scores[row] = _raise_survivors(scores[row], survivors, found, order)

    def _update_heads(self, found: Ranking) -> None:
        """Update heads within their KV groups, then the groups, scored by the sum over their heads."""
        groups, kv_heads = self.ranking.kv_heads, self.architecture.kv_heads
        heads = self.scores[Axis.HEADS].unflatten(-1, (groups, -1))
        for place, layer in enumerate(self.layers):
            scores = found.scores[Axis.HEADS][place].unflatten(-1, (kv_heads, -1))
            before, survivors = heads[layer].sum(-1), self._survivors(Axis.KV_HEADS, layer, None)
            for group, of in zip(survivors.tolist(), scores, strict=True):
                inside = self._survivors(Axis.HEADS, layer, group)
                order = _merged(self.orders[Axis.HEADS][layer, group], inside[descending(of)])
                self.orders[Axis.HEADS][layer, group] = order
                heads[layer, group] = _raise_survivors(heads[layer, group], inside, of, order)
            order = _merged(self.orders[Axis.KV_HEADS][layer], survivors[found.orders[Axis.KV_HEADS][place]])
            self.orders[Axis.KV_HEADS][layer] = order
            sums = _raise_survivors(before, survivors, scores.sum(-1), order)
            heads[layer] += ((sums - heads[layer].sum(-1)) / heads.shape[-1])[:, None]

    def _fix_ties(self) -> None:
        """Replace the scores of a row by positions in its order where rounding made their order wrong."""
        orders = replace(self.ranking, scores=self.scores).orders
        for axis, wanted in self.orders.items():
            if axis in (Axis.HEADS, Axis.KV_HEADS) or torch.equal(orders[axis], wanted):
                continue
            wrong = (orders[axis] != wanted).any(-1)
            scores = self.scores[axis].view(wanted.shape)
            scores[wrong] = _order_scores(wanted)[wrong]
        if Axis.HEADS in self.scores:
            self._fix_head_ties(orders)

    def _fix_head_ties(self, found: dict[Axis, Tensor]) -> None:
        groups, heads = self.orders[Axis.KV_HEADS], self.orders[Axis.HEADS]
        wrong = (found[Axis.KV_HEADS] != groups).any(-1) | (found[Axis.HEADS] != heads).any(-1).any(-1)
        scores = self.scores[Axis.HEADS].view(heads.shape)
        scores[wrong] = (_order_scores(groups)[..., None] * heads.shape[-1] + _order_scores(heads))[wrong]


def _merged(order: Tensor, best: Tensor) -> Tensor:
    """Return the units of ``best``, then the other units of ``order`` in its order."""
    return torch.cat([best, order[~torch.isin(order, best)]])


def _raise_survivors(scores: Tensor, survivors: Tensor, found: Tensor, order: Tensor) -> Tensor:
    """Return the scores with the survivors' new ones, raised by a constant if ``order`` requires it."""
    new = scores.clone()
    new[survivors] = found.double()
    if len(survivors) < len(scores) and not torch.equal(descending(new), order):
        highest = scores[order[len(survivors) :]].max()
        gap = _GAP * torch.maximum(highest.abs(), found.abs().max().double()).clamp_min(_GAP)
        new[survivors] += highest - found.min() + gap
    return new


def _order_scores(order: Tensor) -> Tensor:
    """Return scores that give an order: n for its first unit down to 1 for its last."""
    down = torch.arange(order.shape[-1], 0, -1, dtype=torch.float64, device=order.device)
    return torch.empty(order.shape, dtype=torch.float64).scatter_(-1, order, down.expand(order.shape))


class RoundPhase(StrEnum):
    """The axes that one phase of a round scores and prunes."""

    TOGETHER = "together"
    """Width and depth, from the same scoring."""
    WIDTH = "width"
    """Every axis but layers."""
    DEPTH = "depth"


_AXES = {
    RoundPhase.TOGETHER: frozenset(Axis),
    RoundPhase.WIDTH: frozenset(Axis) - {Axis.LAYERS},
    RoundPhase.DEPTH: frozenset({Axis.LAYERS}),
}
_DEFAULT = Method()


def rank_in_rounds(
    model: PreTrainedModel,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    target: Architecture,
    advance: Callable[[float], None] = lambda blocks: None,
    method: Method = _DEFAULT,
    order: Sequence[RoundPhase] = (RoundPhase.TOGETHER,),
    accelerator: Accelerator | None = None,
    judge: Judge | None = None,
    layer_scores: LayerScores | None = None,
) -> Ranking:
    """Rank the teacher in ``method.rounds`` rounds of scoring and pruning.

    Each phase but the last scores, then prunes its axes by (teacher − target) / rounds units, or up to
    the next size that the class allows. With one round of one phase the scores are those of ``rank``. In a
    basis other than coordinates, all rounds keep the directions found in the first round.

    Args:
        model: the teacher, in evaluation mode; not changed.
        axis_map: the teacher's.
        calibration: (N, T) token ids; each block is one sample of the batch.
        fingerprint: of everything that the ranking depends on, target and order included.
        target: the sizes after the last round: the smallest that students may have.
        advance: as for ``rank``; N blocks per phase, and the passes that score its layers.
        method: how each round scores, and how many there are.
        order: the phases of a round; (WIDTH, DEPTH) scores layers after the widths have been cut.
        accelerator: as for ``rank``; every process prunes the same units.
        judge: as for ``rank``; also scores the students of every phase.
        layer_scores: the teacher's, if they are there already.

    Raises:
        InputError: activations are not finite, the class computes with an axis in an unknown way or cannot
            keep just the layers of a round, or blocks of layers are to be scored in several rounds.
    """
    single = replace(method, rounds=1)
    _check(method, order)
    ranking = rank(
        model, axis_map, calibration, fingerprint, advance, single, accelerator, judge, layer_scores
    )
    architectures = architectures_between(axis_map, target, method.rounds)
    steps = [(phase, sizes) for sizes in architectures for phase in order]
    if len(steps) == 1:
        return ranking
    weights, single = saved_tensors(model, axis_map), replace(single, basis=BasisName.COORDINATE)
    reached = axis_map.teacher
    for (before, sizes), (phase, _) in pairwise(steps):
        reached = _pruned(reached, sizes, before)
        layers = layers_kept(axis_map, ranking, reached)
        canonical = sort_by_importance(weights, axis_map, ranking)
        student = extract(canonical, axis_map, ranking, reached, layers)
        student_axes = student_map(axis_map, reached, layers)
        found = rank(student, student_axes, calibration, fingerprint, advance, single, accelerator, judge)
        axes = _AXES[phase] - ({Axis.HIDDEN} if ranking.basis is not None else set())
        ranking = RankingMerge(axis_map, ranking, reached, layers).with_scores(found, axes)
    return replace(ranking, method=f"{method.words}, {' then '.join(order)}, towards {target.label}")


def _check(method: Method, order: Sequence[RoundPhase]) -> None:
    if method.rounds > 1 and method.in_blocks and set(order) != {RoundPhase.WIDTH}:
        raise InputError(
            "Layers in a row are scored once: what is left of a block is no block of the teacher's",
            f"{method.rounds} rounds with layers by {method.depth} were asked for",
            "Take one round, or layers by influence, perplexity or divergence",
        )


def _pruned(reached: Architecture, sizes: Architecture, phase: RoundPhase) -> Architecture:
    """Return the sizes after one phase of the round that ends at ``sizes``."""
    changed = {axis.value: sizes[axis] for axis in _AXES[phase]}
    return replace(reached, **changed)
