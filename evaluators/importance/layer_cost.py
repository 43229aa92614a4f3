"""What it takes to score layers, in forward passes of the whole teacher: foretold here, told as it is done.

One pass without one of m layers computes the (m − 1) / 2 layers behind it on average, since the states before
it are kept; losses then need the head, which in small teachers costs as much as several layers. Legend: L
layers of the teacher.
"""

from __future__ import annotations

from evaluators.importance.method import Depth, Method
from space.axes.axis_map import AxisMap
from space.counting.counting import matrix_polynomial


def scored_apart(method: Method) -> bool:
    """Whether the ranking's own forward pass does not score the layers."""
    return method.greedy or method.depth not in (Depth.INFLUENCE, Depth.BLOCK_INFLUENCE)


def head_share(axis_map: AxisMap) -> float:
    """Return the share of the head in the arithmetic of a forward pass."""
    teacher = axis_map.teacher
    vocabulary = axis_map.config.get_text_config(decoder=True).vocab_size
    return min(1.0, float(vocabulary * teacher.hidden / matrix_polynomial(axis_map).of(teacher)))


def forward_passes(axis_map: AxisMap, method: Method) -> float:
    """Return how many forward passes over the sample score the layers, where states can be reused.

    A task's examples count as the sample, however long they are, and so do generated answers.
    """
    layers = axis_map.teacher.layers
    if not scored_apart(method) or method.depth is Depth.RANDOM:
        return 0.0
    run, heads = _blocks(layers) if method.in_blocks else (0.0, 0)
    for removed in range(0 if run else max(1, layers - 1) if method.greedy else 1):
        more = _each(method.depth, layers, removed)
        run, heads = run + more[0], heads + more[1]
    share = head_share(axis_map)
    return (1 - share) * run / layers + share * heads


def _each(depth: Depth, layers: int, removed: int) -> tuple[float, int]:
    """Return the layers and heads that run to score each layer that is left."""
    if depth is Depth.INFLUENCE:
        return layers, 0
    left = layers - removed
    heads = 2 if depth is Depth.DIVERGENCE else 1  # the teacher's own distribution is made again each time
    return layers + left * (left - 1) / 2, heads * left


def _blocks(layers: int) -> tuple[float, int]:
    """Return the layers and heads that run without every block of layers: n starts for one that ends at n."""
    run = layers + sum(stop * (layers - stop) for stop in range(1, layers + 1))
    return float(run), layers * (layers + 1) // 2
