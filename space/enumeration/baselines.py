"""What a person would try by hand: the baselines that a search has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from space.axes.architecture import Architecture, Axis
from space.enumeration.limits import NEURONS
from space.enumeration.search_space import SearchSpace

UNIFORM, MLP_AND_HEADS, DEPTH = "uniform", "mlp-heads", "depth"
#: KV heads move in steps too coarse to be compared; among equals, more of them come first.
_WIDTHS = (Axis.HIDDEN, Axis.MLP, Axis.HEADS, Axis.EXPERTS, Axis.EXPERT_MLP, Axis.SHARED_MLP, Axis.HEAD_DIM)


def baselines(space: SearchSpace, teacher: Architecture) -> dict[str, Architecture]:
    """Hand-made architectures within the budget, by name.

    One that the space does not hold is left out, and so is one that is the same as another before it.

    - ``uniform``: all widths shrunk alike, experts among them, no layer removed.
    - ``mlp-heads``: the neurons of MLPs and experts, and heads, shrunk alike; all else kept.
    - ``depth``: layers removed, all widths kept but for what the solved axis needs to meet the budget.
    """
    widths = [axis for axis in _WIDTHS if len(space.values(axis)) > 1]
    inside = [axis for axis in widths if axis in (*NEURONS, Axis.HEADS)]
    whole_layers = space.column(Axis.LAYERS) == teacher.layers
    outside = [axis for axis in Axis if axis not in (*inside, Axis.KV_HEADS)]
    rows = {
        UNIFORM: _most_even(space, teacher, widths, whole_layers),
        MLP_AND_HEADS: _most_even(space, teacher, inside, _kept(space, teacher, outside)),
        DEPTH: _deepest(space, teacher),
    }
    found: dict[str, Architecture] = {}
    for name, row in rows.items():
        if row is not None and (architecture := space.architectures[row]) not in found.values():
            found[name] = architecture
    return found


def _kept(space: SearchSpace, teacher: Architecture, axes: Sequence[Axis]) -> NDArray[np.bool_]:
    """(n,) whether all of these axes are as large as the teacher's."""
    kept = np.ones(len(space), dtype=bool)
    for axis in axes:
        kept &= space.column(axis) == teacher[axis]
    return kept


def _most_even(
    space: SearchSpace, teacher: Architecture, axes: Sequence[Axis], among: NDArray[np.bool_]
) -> int | None:
    """The row in which the axes shrink most evenly: least in the range of the logarithms of their shares.

    Rounded, so that ties are ties on every machine; among equals whoever keeps more of its heads comes first.
    """
    if not among.any() or not axes:
        return None
    shares = np.log([space.column(axis) / teacher[axis] for axis in axes])
    unevenness = np.round(shares.max(0) - shares.min(0), 9)
    order = np.lexsort((-space.column(Axis.HEADS), -space.column(Axis.KV_HEADS), unevenness, ~among))
    return int(order[0])


def _deepest(space: SearchSpace, teacher: Architecture) -> int | None:
    """The row that keeps the widths, and of the solved axis the most; without one, the most layers."""
    fixed = [axis for axis in space.free_axes if axis is not Axis.LAYERS]
    shallow = _kept(space, teacher, fixed) & (space.column(Axis.LAYERS) < teacher.layers)
    if not shallow.any():
        return None
    most = space.column(space.solved or Axis.LAYERS)
    return int(np.where(shallow, most, -1).argmax())
