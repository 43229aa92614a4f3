"""What a person would try by hand: the baselines that a search has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence

from space.architecture import Architecture, Axis
from space.search_space import SearchSpace

UNIFORM, MLP_AND_HEADS, DEPTH = "uniform", "mlp-heads", "depth"


def baselines(space: SearchSpace, teacher: Architecture) -> dict[str, Architecture]:
    """Hand-made architectures within the budget, by name; one that the space does not hold is left out.

    - ``uniform``: all widths shrunk alike, no layer removed.
    - ``mlp-heads``: MLP and heads shrunk alike, hidden and layers kept.
    - ``depth``: layers removed, all widths kept but for what the MLP needs to meet the budget.
    """
    whole = space.architectures
    no_layer_gone = [a for a in whole if a.layers == teacher.layers]
    narrow_inside = [a for a in no_layer_gone if a.hidden == teacher.hidden]
    shallow = [
        a
        for a in whole
        if (a.hidden, a.heads, a.kv_heads) == (teacher.hidden, teacher.heads, teacher.kv_heads)
        and a.layers < teacher.layers
    ]
    found: dict[str, Architecture] = {}
    if no_layer_gone:
        widths = (Axis.HIDDEN, Axis.MLP, Axis.HEADS)
        found[UNIFORM] = min(no_layer_gone, key=lambda a: _unevenness(a, teacher, widths))
    if narrow_inside:
        found[MLP_AND_HEADS] = min(
            narrow_inside, key=lambda a: _unevenness(a, teacher, (Axis.MLP, Axis.HEADS))
        )
    if shallow:
        found[DEPTH] = max(shallow, key=lambda a: a.mlp)
    return found


def _unevenness(architecture: Architecture, teacher: Architecture, axes: Sequence[Axis]) -> tuple[float, ...]:
    """How unevenly the axes shrink: the range of the logarithms of their shares.

    Rounded, so that ties are ties on every machine; among equals whoever keeps more of its heads comes first.
    """
    shares = [math.log(architecture[axis] / teacher[axis]) for axis in axes]
    return round(max(shares) - min(shares), 9), -architecture.kv_heads, -architecture.heads
