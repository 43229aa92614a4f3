"""What a round of scoring a smaller student says of its teacher: survivors first, the fallen as they fell.

A student's units are the first of every order of the ranking that it was cut by. Scored anew they get
an order of their own, all of them before those that the student lacks. Scores follow: survivors keep
their new ones, raised as far as is needed to stand above the fallen.

Legend: as in ``space.cutting.ranking``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.ranking import Ranking, descending

#: Of the scores, what survivors stand above the fallen by.
_GAP = 2.0**-20


class Merging:
    """A teacher's ranking that takes in what a student's says.

    Args:
        axis_map: the teacher's.
        ranking: the one that the student was cut by.
        architecture: the student's sizes.
        layers: the teacher's layers that it has.
    """

    def __init__(
        self, axis_map: AxisMap, ranking: Ranking, architecture: Architecture, layers: Sequence[int]
    ) -> None:
        self.axis_map, self.ranking, self.architecture, self.layers = axis_map, ranking, architecture, layers
        self.scores = {axis: of.double().clone() for axis, of in ranking.scores.items()}
        self.orders = {axis: of.clone() for axis, of in ranking.orders.items()}

    def with_scores(self, found: Ranking, axes: Collection[Axis]) -> Ranking:
        """The teacher's ranking after a round.

        Args:
            found: the student's.
            axes: those that the round decides on; all others stay as they are.
        """
        for axis in axes & self.scores.keys() & found.scores.keys():
            if axis is Axis.HEADS:
                self._heads(found)
            elif axis is Axis.LAYERS:
                self._row(axis, (), torch.tensor(self.layers), found.scores[axis])
            else:
                for row, survivors, scores in self._rows(axis, found):
                    self._row(axis, row, survivors, scores)
        self._settle()
        return replace(self.ranking, scores=self.scores)

    def _rows(self, axis: Axis, found: Ranking) -> Iterator[tuple[tuple[int, ...], Tensor, Tensor]]:
        """Where in the scores, the teacher's numbers of the survivors, and the student's scores of them."""
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
        """The teacher's numbers of the student's units, in the student's order."""
        order, student = self.ranking.order(axis, layer, within), self.architecture
        if axis not in self.axis_map.sortable:
            return torch.arange(len(order))
        if axis is Axis.HEADS:
            return order[: student.heads // student.kv_heads]
        return order[
            : student.experts // self.ranking.expert_groups if axis is Axis.EXPERTS else student[axis]
        ]

    def _experts(self, layer: int) -> list[int]:
        """The teacher's numbers of the student's experts."""
        groups, size = self.ranking.expert_groups, self.axis_map.teacher.experts // self.ranking.expert_groups
        return [
            group * size + expert
            for group in range(groups)
            for expert in self._survivors(Axis.EXPERTS, layer, group).tolist()
        ]

    def _row(self, axis: Axis, row: tuple[int, ...], survivors: Tensor, found: Tensor) -> None:
        scores = self.scores[axis]
        if axis is Axis.EXPERTS:
            scores = scores.unflatten(-1, (self.ranking.expert_groups, -1))
        order = _first(self.orders[axis][row], survivors[descending(found)])
        self.orders[axis][row] = order
        scores[row] = _raised(scores[row], survivors, found, order)

    def _heads(self, found: Ranking) -> None:
        """Heads within their groups, then groups, which are scored by the sum over their heads."""
        groups, kv_heads = self.ranking.kv_heads, self.architecture.kv_heads
        heads = self.scores[Axis.HEADS].unflatten(-1, (groups, -1))
        for place, layer in enumerate(self.layers):
            scores = found.scores[Axis.HEADS][place].unflatten(-1, (kv_heads, -1))
            before, survivors = heads[layer].sum(-1), self._survivors(Axis.KV_HEADS, layer, None)
            for group, of in zip(survivors.tolist(), scores, strict=True):
                inside = self._survivors(Axis.HEADS, layer, group)
                order = _first(self.orders[Axis.HEADS][layer, group], inside[descending(of)])
                self.orders[Axis.HEADS][layer, group] = order
                heads[layer, group] = _raised(heads[layer, group], inside, of, order)
            order = _first(self.orders[Axis.KV_HEADS][layer], survivors[found.orders[Axis.KV_HEADS][place]])
            self.orders[Axis.KV_HEADS][layer] = order
            sums = _raised(before, survivors, scores.sum(-1), order)
            heads[layer] += ((sums - heads[layer].sum(-1)) / heads.shape[-1])[:, None]

    def _settle(self) -> None:
        """Where scores are too close to tell units apart, their places stand in for them."""
        orders = replace(self.ranking, scores=self.scores).orders
        for axis, wanted in self.orders.items():
            if axis in (Axis.HEADS, Axis.KV_HEADS) or torch.equal(orders[axis], wanted):
                continue
            wrong = (orders[axis] != wanted).any(-1)
            scores = self.scores[axis].view(wanted.shape)
            scores[wrong] = _places(wanted)[wrong]
        if Axis.HEADS in self.scores:
            self._settle_heads(orders)

    def _settle_heads(self, found: dict[Axis, Tensor]) -> None:
        groups, heads = self.orders[Axis.KV_HEADS], self.orders[Axis.HEADS]
        wrong = (found[Axis.KV_HEADS] != groups).any(-1) | (found[Axis.HEADS] != heads).any(-1).any(-1)
        scores = self.scores[Axis.HEADS].view(heads.shape)
        scores[wrong] = (_places(groups)[..., None] * heads.shape[-1] + _places(heads))[wrong]


def _first(order: Tensor, best: Tensor) -> Tensor:
    """The units of ``best``, then all others of ``order`` in its order."""
    return torch.cat([best, order[~torch.isin(order, best)]])


def _raised(scores: Tensor, survivors: Tensor, found: Tensor, order: Tensor) -> Tensor:
    """The scores with new ones for survivors, all raised alike if that is needed for ``order``."""
    new = scores.clone()
    new[survivors] = found.double()
    if len(survivors) < len(scores) and not torch.equal(descending(new), order):
        highest = scores[order[len(survivors) :]].max()
        gap = _GAP * torch.maximum(highest.abs(), found.abs().max().double()).clamp_min(_GAP)
        new[survivors] += highest - found.min() + gap
    return new


def _places(order: Tensor) -> Tensor:
    """Whole numbers, the first of an order the highest."""
    down = torch.arange(order.shape[-1], 0, -1, dtype=torch.float64, device=order.device)
    return torch.empty(order.shape, dtype=torch.float64).scatter_(-1, order, down.expand(order.shape))
