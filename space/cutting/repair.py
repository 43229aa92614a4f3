"""Optional repairs of a student's weights that compensate for what was cut.

*Head residual* (Minitron, arXiv 2407.14679, section 2.4): when L heads, ordered by importance, become K with
K < L ≤ 2K, every kept head i from 2K − L + 1 to K (counted from 1) becomes
``head_i + (head_i − head_{2K−i+1})``. The range printed in the paper begins one earlier, where the other
head would lie beyond the last. For L > 2K nothing is done. With grouped queries, L and K count the queries
of one group, and only queries change; where each head has its own keys and values, these change too.

*Least squares*: a matrix W that reads kept inputs x_k and dropped inputs x_d absorbs what the kept inputs
predict of the dropped ones, ``W_k ← W_k + W_d A_dk (A_kk + λI)⁻¹`` with A the mean of x xᵀ. This is the
ridge regression of its original output on the inputs that it still reads (see ``ridge``).

*Norm scale*: a norm over k kept of D dimensions divides by another root mean square than over all D; its
weight is multiplied by ``√(mean over kept of E[x̂²])``, with x̂ the input over its root mean square.

In a rotated basis, least squares also refits the matrices that read the residual stream, each by the moment
at its own norm, and every norm gets its gain from that moment.
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
from space.cutting.moments import InputMoment, Moments, expert_dimension, reading_dimensions
from space.cutting.ridge import ridge_refit


def residual_partners(before: int, after: int) -> Tensor:
    """Return (L,) for each head, ordered by importance, the head to subtract; the head itself if none.

    Args:
        before: L.
        after: K.
    """
    order = torch.arange(before)
    if after < before <= 2 * after:
        order[2 * after - before : after] = torch.arange(before - 1, after - 1, -1)
    return order


def add_head_residual(
    values: Tensor, dim: int, tensor: MappedTensor, student: Architecture, teacher: Architecture
) -> Tensor:
    """Apply the head residual to a sorted tensor.

    Args:
        values: of the canonical teacher, with all heads.
        dim: the dimension along which heads are produced, from ``producing_tensors``.
        tensor: the tensor in the axis map.
        student: the sizes that will be cut to.
        teacher: the sizes of ``values``.
    """
    ungrouped = teacher.heads == teacher.kv_heads
    head_axis = Axis.KV_HEADS if ungrouped else Axis.HEADS
    if head_axis not in axes_of(tensor.dimensions[dim]):
        return values
    kept = student.kv_heads if ungrouped else student.heads // student.kv_heads
    heads = teacher.heads if ungrouped else teacher.heads // teacher.kv_heads
    partners = residual_partners(heads, kept)

    def order(axis: Axis, within: int | None) -> Tensor:
        """Put each head's partner in its position and leave all other units where they are."""
        size = teacher.heads // teacher.kv_heads if axis is Axis.HEADS else teacher[axis]
        return partners if axis is head_axis else torch.arange(size)

    index = positions(tensor.dimensions[dim], order).to(values.device)
    return values + (values - values.index_select(dim, index))


def producing_tensors(axis_map: AxisMap) -> dict[str, int]:
    """Return the tensors that produce queries, keys or values, with the dimension of heads, by name.

    They belong to linear modules, whose class tells which dimension is the output.
    """
    model, found = build(axis_map.config), {}
    for tensor in axis_map.tensors:
        if not tensor.has(Axis.HEADS) and not tensor.has(Axis.KV_HEADS):
            continue
        module = model.get_submodule(tensor.module)
        if isinstance(module, (nn.Linear, Conv1D)):
            dim = len(tensor.dimensions) - 1 if isinstance(module, Conv1D) else 0
            if {Axis.HEADS, Axis.KV_HEADS} & tensor.axes[dim]:
                found[tensor.name] = dim
    return found


@dataclass(frozen=True)
class Repair:
    """The repairs applied when a student is cut from the canonical teacher; none by default."""

    heads: Mapping[str, int] = field(default_factory=dict)
    """The tensors that the head residual changes, from ``producing_tensors``; none by default."""
    least_squares: bool = False
    norm_scale: bool = False
    moments: Moments | None = None
    """From ``Moments.sorted_by`` the ranking; least squares and norm scale need them."""
    ridge: float | None = None
    """λ divided by tr(A_kk) / k; None: decided for each matrix. For any value, no output has a larger error
    on the calibration set than without the repair."""

    def __post_init__(self) -> None:
        assert self.moments is not None or not (self.least_squares or self.norm_scale), "repairs need moments"

    def repaired(
        self, values: Tensor, tensor: MappedTensor, axis_map: AxisMap, student: Architecture
    ) -> Tensor:
        """Return a full-size tensor of the canonical teacher with the part to be kept repaired.

        Args:
            values: from ``sort_by_importance``; not modified.
            tensor: the tensor in the axis map.
            axis_map: the teacher's.
            student: the sizes that will be cut to.
        """
        teacher = axis_map.teacher
        if (dim := self.heads.get(tensor.name)) is not None and student.heads != teacher.heads:
            values = add_head_residual(values, dim, tensor, student, teacher)
        if self.moments is None:
            return values
        if self.least_squares and tensor.name in self.moments.reads:
            values = self._refit(values, tensor, student, teacher)
        if self.least_squares and student.hidden < teacher.hidden:
            values = self._repair_stream(values, tensor, student.hidden)
        if self.norm_scale and tensor.name in self.moments.energies:
            energy = self.moments.energies[tensor.name]
            kept = prefix(energy.mean, 0, tensor.dimensions[0], student, teacher)
            if len(kept) < len(energy.mean):
                values = (values + energy.offset) * float(kept.mean().sqrt()) - energy.offset
        return values

    def _repair_stream(self, values: Tensor, tensor: MappedTensor, hidden: int) -> Tensor:
        """Refit a matrix that reads the output of a norm of a rotated stream."""
        assert self.moments is not None
        if tensor.name not in self.moments.norm_of:
            return values
        norm, dim = self.moments.norm_of[tensor.name], hidden_dimension(tensor.axes)
        second = self.moments.at_norm(norm, values.device)
        half = self.moments.half_at_norm(norm, values.device)
        along, tokens = values.movedim(dim, -1), self.moments.tokens or None
        rows = ridge_refit(along.flatten(0, -2), second, torch.arange(hidden), self.ridge, half, tokens)
        return rows.view(along.shape).movedim(-1, dim)

    def norm_gain(self, name: str, hidden: int, device: torch.device) -> float:
        """Return what a norm of a rotated stream has to multiply by, over so many of the directions."""
        assert self.moments is not None, "repairs need moments"
        return float(self.moments.at_norm(name, device).diagonal()[:hidden].mean().sqrt())

    @property
    def sets_gains(self) -> bool:
        """Whether the norms of a rotated stream get individual gains."""
        return self.least_squares and self.moments is not None and bool(self.moments.stream)

    def _refit(
        self, values: Tensor, tensor: MappedTensor, student: Architecture, teacher: Architecture
    ) -> Tensor:
        """Refit a matrix that reads neurons or heads by least squares, for each expert where it has any."""
        assert self.moments is not None
        whole = {dim: tensor.dimensions[dim] for dim in reading_dimensions(tensor)}
        kept_of = {dim: _prefix_of(layout, student, teacher) for dim, layout in whole.items()}
        if all(len(kept_of[dim]) == layout.length for dim, layout in whole.items()):
            return values  # before the moment is read
        read = self.moments.read(tensor.name, values.device)
        kept, experts = kept_of[read.place], expert_dimension(tensor)
        if read.second.ndim == 2:
            return self._refitted(values, read, kept)
        assert experts is not None, "several moments belong to several experts"
        one_each = read.of_experts(read.place - (experts < read.place))
        refitted = [self._refitted(*one, kept) for one in zip(values.unbind(experts), one_each, strict=True)]
        return torch.stack(refitted, experts)

    def _refitted(self, values: Tensor, read: InputMoment, kept: Tensor) -> Tensor:
        tokens = None if read.tokens is None else float(read.tokens)
        rows = values.movedim(read.place, -1)
        return ridge_refit(rows, read.second, kept, self.ridge, read.half, tokens).movedim(-1, read.place)


def _prefix_of(layout: Layout, student: Architecture, teacher: Architecture) -> Tensor:
    """Return (k,) the positions that a student keeps of a sorted dimension."""
    return prefix(torch.arange(layout.length), 0, layout, student, teacher)
