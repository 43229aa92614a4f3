"""Merging neurons rather than dropping them.

What a dropped neuron wrote is added to what the kept neuron writes that goes along with it most, times the
coefficient of regression through the origin: x_j ≈ (E[x_i x_j] / E[x_i²]) x_i, for the i with the largest
cosine between the two over tokens, in size. Full least squares (``space.cutting.repair``) regress on
all kept neurons at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.moments import Moments


def with_merged(
    canonical: Mapping[str, Tensor], axis_map: AxisMap, moments: Moments, student: Architecture
) -> dict[str, Tensor]:
    """The canonical teacher, of its full size, with what the dropped neurons wrote added to the kept.

    Args:
        canonical: from ``sort_by_importance``.
        axis_map: the teacher's.
        moments: sorted by the same ranking.
        student: the sizes that will be cut to.
    """
    found = dict(canonical)
    for tensor in axis_map.tensors:
        read = moments.reads.get(tensor.name)
        if read is not None and tensor.axes[read.place] == {Axis.MLP}:
            columns = canonical[tensor.name].movedim(read.place, -1)
            found[tensor.name] = merged(columns, read.second, student.mlp).movedim(-1, read.place)
    return found


def merged(columns: Tensor, second: Tensor, kept: int) -> Tensor:
    """(out, F) weights whose first columns have taken in the others.

    Args:
        columns: (out, F).
        second: (F, F) the mean of xxᵀ of what they read, float64.
        kept: neurons that stay, the first.
    """
    squares = second.diagonal().clamp_min(1e-30)
    between = second[kept:, :kept]
    nearest = (between.square() / squares[:kept]).argmax(-1)
    shares = between.gather(1, nearest[:, None])[:, 0] / squares[nearest]
    added = (columns[:, kept:].double() * shares).to(columns.dtype)
    return columns.clone().index_add_(1, nearest, added)
