"""How a ranking's scores fall off, in as few numbers as a screen shows: plain ones, for drawing.

A teacher of 32 layers with 14336 neurons each has half a million scores. Sorted, they are a few smooth
curves: means over groups of units that follow one another by rank, and how much of the energy the best
units hold together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Groups of a row; rows of fewer units have a group for each.
MOST_GROUPS = 128
_DIGITS = 4


@dataclass(frozen=True)
class Profile:
    """Of one axis, best units first.

    A row is a layer, or the whole model where all layers share the units. Units of experts are ranked within
    their expert, and a row is the mean over the experts. None in place of a row: the layer lacks the axis.
    """

    edges: tuple[int, ...]
    """(g + 1,) ranks between which the groups lie, from 0 to the number of units."""
    scores: tuple[tuple[float, ...] | None, ...]
    """(rows, g) the mean score of each group's units."""
    energy: tuple[tuple[float, ...] | None, ...]
    """(rows, g + 1) the share of the row's energy that the units above each edge hold: from 0 to 1."""

    @property
    def units(self) -> int:
        """Of a row."""
        return self.edges[-1]


def profile_of(scores: Tensor, in_order: bool = False) -> Profile:
    """The profile of an axis; the energy of a unit is the square of its score.

    Args:
        scores: (units,), (L, units) or (L, E, units), none of them negative.
        in_order: the units come best first, whatever their scores.
    """
    best_first = scores.double() if in_order else scores.double().sort(dim=-1, descending=True).values
    edges = _edges(scores.shape[-1])
    rows, energies = _rows(best_first), _rows(best_first.square())
    there = [bool(row.any()) or not bool(rows.any()) for row in rows]
    return Profile(
        tuple(edges.tolist()),
        _plain([_group_means(row, edges) for row in rows], there),
        _plain([_shares(row)[edges] for row in energies], there),
    )


def _rows(values: Tensor) -> Tensor:
    """(rows, units), experts averaged."""
    if values.ndim == 1:
        return values[None]
    return values.mean(1) if values.ndim == 3 else values


def _edges(units: int) -> Tensor:
    return torch.linspace(0, units, min(units, MOST_GROUPS) + 1, dtype=torch.float64).round().long()


def _group_means(row: Tensor, edges: Tensor) -> Tensor:
    sums = torch.cat([row.new_zeros(1), row.cumsum(0)])
    return (sums[edges[1:]] - sums[edges[:-1]]).clamp_min(0) / edges.diff()


def _shares(row: Tensor) -> Tensor:
    """(units + 1,) the share of the sum of the first so many; in equal steps where there is nothing."""
    sums = torch.cat([row.new_zeros(1), row.cumsum(0)])
    if not sums[-1] > 0:
        return torch.linspace(0, 1, len(sums), dtype=torch.float64)
    return sums / sums[-1]


def _plain(rows: Sequence[Tensor], there: Sequence[bool]) -> tuple[tuple[float, ...] | None, ...]:
    return tuple(
        tuple(float(f"{value:.{_DIGITS}g}") for value in row.tolist()) if has else None
        for row, has in zip(rows, there, strict=True)
    )
