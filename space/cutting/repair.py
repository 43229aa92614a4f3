"""Repairs of a student's weights for what was cut, each optional.

Minitron (arXiv 2407.14679, section 2.4): when L heads in their order of importance become K, with
K < L ≤ 2K, every kept head i from 2K − L + 1 to K (counted from 1) becomes
``head_i + (head_i − head_{2K−i+1})``. As printed there the range begins one earlier, where the other head
would be the one after the last. With more than twice as many heads there is no such pairing, and
nothing is done. Under grouped queries L and K count the queries of one group, and queries alone
change; where each head has its own keys and values they change with it.

*Head residual*: see ``space.cutting.repair``. *Least squares*: a matrix W that reads kept inputs x_k and
dropped ones x_d takes in what the kept tell of the dropped, ``W_k ← W_k + W_d A_dk (A_kk + λI)⁻¹`` with
A the mean of x xᵀ, which is the ridge regression of its own output on what it still reads. *Norm
scale*: a norm over k kept of D dimensions divides by another root mean square than over all; its weight
is multiplied by ``√(mean over kept of E[x̂²])``, with x̂ the input over its root mean square.

In a turned basis least squares also mend the matrices that read the stream, each by what its own norm
lets through, and every norm's gain becomes that of what it reads itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap, MappedTensor, build
from space.axes.layout import Layout, axes_of, positions, prefix
from space.cutting.basis import hidden_dimension
from space.cutting.moments import Moments, expert_dimension


def residual_partners(before: int, after: int) -> Tensor:
    """(L,) for each head in the order of importance the one that it moves away from; itself if none.

    Args:
        before: L.
        after: K.
    """
    order = torch.arange(before)
    if after < before <= 2 * after:
        order[2 * after - before : after] = torch.arange(before - 1, after - 1, -1)
    return order


def add_head_residual(
    values: Tensor, place: int, tensor: MappedTensor, student: Architecture, teacher: Architecture
) -> Tensor:
    """A sorted tensor whose kept heads have taken in what is left of the dropped ones.

    Args:
        values: of the canonical teacher, all heads there.
        place: the dimension along which heads are produced, from ``producing_tensors``.
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
    others = residual_partners(each, kept)

    def order(axis: Axis, within: int | None) -> Tensor:
        """All units where they are, but heads in the places of those that they are a partner of."""
        size = teacher.heads // teacher.kv_heads if axis is Axis.HEADS else teacher[axis]
        return others if axis is counted else torch.arange(size)

    index = positions(tensor.dimensions[place], order).to(values.device)
    return values + (values - values.index_select(place, index))


def producing_tensors(axis_map: AxisMap) -> dict[str, int]:
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


#: Relative to the mean of the kept inputs' squares. On two small Llamas, cut to two thirds of their neurons,
#: the loss of the repaired student moved by less than 0.001 between 1e-7 and 1e-3.
RIDGE = 1e-4


@dataclass(frozen=True)
class Repair:
    """What is repaired when a student is cut from the canonical teacher; nothing by default."""

    heads: Mapping[str, int] = field(default_factory=dict)
    """Head residual: the tensors that it changes, from ``residual.producing``; none by default."""
    least_squares: bool = False
    norm_scale: bool = False
    moments: Moments | None = None
    """``Moments.sorted_by`` the ranking; least squares and norm scale need them."""
    ridge: float = RIDGE
    """λ over tr(A_kk) / k. It keeps inputs that say the same of one another from blowing weights up; whatever
    it is, no output errs more on the calibration set than without the repair."""

    def __post_init__(self) -> None:
        assert self.moments is not None or not (self.least_squares or self.norm_scale), "repairs need moments"

    def repaired(
        self, values: Tensor, tensor: MappedTensor, axis_map: AxisMap, student: Architecture
    ) -> Tensor:
        """A tensor of the canonical teacher, of its full size, whose kept part has been repaired.

        Args:
            values: from ``sort_by_importance``; stays as it is.
            tensor: its place in the map.
            axis_map: the teacher's.
            student: the sizes that will be cut to.
        """
        teacher = axis_map.teacher
        if (place := self.heads.get(tensor.name)) is not None and student.heads != teacher.heads:
            values = add_head_residual(values, place, tensor, student, teacher)
        if self.moments is None:
            return values
        if self.least_squares and tensor.name in self.moments.reads:
            values = self._refitted(values, tensor, student, teacher)
        if self.least_squares and student.hidden < teacher.hidden:
            values = self._reread(values, tensor, axis_map, student.hidden)
        if self.norm_scale and tensor.name in self.moments.energies:
            energy = self.moments.energies[tensor.name]
            kept = prefix(energy.mean, 0, tensor.dimensions[0], student, teacher)
            if len(kept) < len(energy.mean):
                values = (values + energy.offset) * float(kept.mean().sqrt()) - energy.offset
        return values

    def _reread(self, values: Tensor, tensor: MappedTensor, axis_map: AxisMap, hidden: int) -> Tensor:
        """A norm with its own gain, or a matrix that reads behind one."""
        assert self.moments is not None
        stream = self.moments.stream
        if tensor.name in stream:
            assert axis_map.stream is not None
            gain = (stream[tensor.name].diagonal()[:hidden].mean()).sqrt()
            return torch.full_like(values, float(gain) - axis_map.stream.offset)
        if tensor.name not in self.moments.norm_of:
            return values
        second, place = stream[self.moments.norm_of[tensor.name]], hidden_dimension(tensor.axes)
        along = values.movedim(place, -1)
        rows = ridge_refit(along.flatten(0, -2), second, torch.arange(hidden), self.ridge)
        return rows.view(along.shape).movedim(-1, place)

    @property
    def sets_gains(self) -> bool:
        """Whether norms of a turned stream get gains of their own."""
        return self.least_squares and self.moments is not None and bool(self.moments.stream)

    def _refitted(
        self, values: Tensor, tensor: MappedTensor, student: Architecture, teacher: Architecture
    ) -> Tensor:
        assert self.moments is not None
        read = self.moments.reads[tensor.name]
        layout: Layout = tensor.dimensions[read.place]
        kept = prefix(torch.arange(layout.length), 0, layout, student, teacher)
        if len(kept) == layout.length:
            return values
        if read.second.ndim == 2:
            return ridge_refit(values.movedim(read.place, -1), read.second, kept, self.ridge).movedim(
                -1, read.place
            )
        experts = expert_dimension(tensor)
        assert experts is not None, "several moments belong to several experts"
        place = read.place - (experts < read.place)
        return torch.stack(
            [
                ridge_refit(one.movedim(place, -1), second, kept, self.ridge).movedim(-1, place)
                for one, second in zip(values.unbind(experts), read.second, strict=True)
            ],
            experts,
        )


def ridge_refit(weights: Tensor, second: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """(out, n) weights whose kept columns make up for the others by ridge regression.

    Args:
        weights: (out, n).
        second: (n, n) A, float64.
        kept: (k,) numbers of the columns that stay.
        ridge: λ over tr(A_kk) / k.
    """
    dropped = torch.ones(len(second), dtype=torch.bool)
    dropped[kept] = False
    between, second = second[dropped][:, kept], second[kept][:, kept]
    mean = second.diagonal().mean()
    if not bool(mean > 0):
        return weights
    shift = ridge * mean * torch.eye(len(kept), dtype=second.dtype)
    shares = torch.linalg.solve(second + shift, between.T).to(weights.device)
    added = weights[:, dropped.to(weights.device)].to(shares.dtype) @ shares.T
    new = weights.clone()
    new[:, kept.to(weights.device)] += added.to(weights.dtype)
    return new
