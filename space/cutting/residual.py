"""What is left of pruned heads: the last of the kept ones move away from the first of the dropped.

Minitron (arXiv 2407.14679, section 2.4): when L heads in their order of importance become K, with
K < L ≤ 2K, every kept head i from 2K − L + 1 to K (counted from 1) becomes
``head_i + (head_i − head_{2K−i+1})``. As printed there the range begins one earlier, where the other head
would be the one after the last. With more than twice as many heads there is no such pairing, and
nothing is done. Under grouped queries L and K count the queries of one group, and queries alone
change; where each head has its own keys and values they change with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, build
from space.axes.axis_map import Tensor as MappedTensor
from space.axes.layout import axes_of, positions


def partners(before: int, after: int) -> Tensor:
    """(L,) for each head in the order of importance the one that it moves away from; itself if none.

    Args:
        before: L.
        after: K.
    """
    order = torch.arange(before)
    if after < before <= 2 * after:
        order[2 * after - before : after] = torch.arange(before - 1, after - 1, -1)
    return order


def with_residual(
    values: Tensor, place: int, tensor: MappedTensor, student: Architecture, teacher: Architecture
) -> Tensor:
    """A sorted tensor whose kept heads have taken in what is left of the dropped ones.

    Args:
        values: of the canonical teacher, all heads there.
        place: the dimension along which heads are produced, from ``producing``.
        tensor: its place in the map.
        student: whose heads are kept.
        teacher: whose heads ``values`` has.
    """
    apart = teacher.heads == teacher.kv_heads
    counted = Axis.KV_HEADS if apart else Axis.HEADS
    if counted not in axes_of(tensor.dimensions[place]):
        return values
    kept = student.kv_heads if apart else student.heads // student.kv_heads
    each = teacher.heads if apart else teacher.heads // teacher.kv_heads
    others = partners(each, kept)

    def order(axis: Axis, within: int | None) -> Tensor:
        """All units where they are, but heads in the places of those that they are a partner of."""
        size = teacher.heads // teacher.kv_heads if axis is Axis.HEADS else teacher[axis]
        return others if axis is counted else torch.arange(size)

    index = positions(tensor.dimensions[place], order).to(values.device)
    return values + (values - values.index_select(place, index))


def producing(axis_map: AxisMap) -> dict[str, int]:
    """The tensors that make queries, keys or values from what they read: by name, the dimension of heads.

    They belong to linear modules, whose classes say which dimension is the output.
    """
    model, found = build(axis_map.config), {}
    for tensor in axis_map.tensors:
        if not tensor.has(Axis.HEADS) and not tensor.has(Axis.KV_HEADS):
            continue
        module = model.get_submodule(tensor.module)
        if isinstance(module, (nn.Linear, Conv1D)):
            place = len(tensor.dimensions) - 1 if isinstance(module, Conv1D) else 0
            if {Axis.HEADS, Axis.KV_HEADS} & tensor.axes[place]:
                found[tensor.name] = place
    return found
