"""How the residual stream varies, and how much each of its directions is read: what a basis is made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from space.axes.axis_map import AxisMap, Stream
from space.axes.scales import starred
from space.cutting.extraction import saved_tensors
from space.cutting.turning import folded, hidden_place


class Covariance:
    """A streaming sum of x̂x̂ᵀ, with x̂ the stream over its root mean square, kept in float64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def add(self, states: Tensor) -> None:
        """Take in (..., D) states at the input of a norm; those of no length are left out."""
        rows = normalised(states)
        product = (rows.T @ rows).double()
        self.total = product if self.total is None else self.total + product
        self.tokens += len(rows)

    @property
    def mean(self) -> Tensor:
        """(D, D) float64 over all tokens and norms taken in."""
        assert self.total is not None, "nothing was listened to"
        return self.total.cpu() / self.tokens


def normalised(states: Tensor) -> Tensor:
    """(n, D) float32 from (..., D): each state over its root mean square."""
    rows = states.detach().flatten(0, -2).float()
    return rows * rows.square().mean(-1, keepdim=True).clamp_min(1e-30).rsqrt()


def norm_inputs(
    model: nn.Module, axis_map: AxisMap, stream: Stream, covariance: Covariance
) -> Iterator[RemovableHandle]:
    """Hooks that take in what every norm of the stream reads."""
    for tensor in axis_map.tensors:
        if starred(tensor.name) in stream.readers:

            def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                states = arguments[0].detach().float()
                covariance.add(states - states.mean(-1, keepdim=True) if stream.centred else states)

            yield model.get_submodule(tensor.module).register_forward_pre_hook(note)


@torch.no_grad()
def reading(model: PreTrainedModel, axis_map: AxisMap, stream: Stream, covariance: Tensor) -> Tensor:
    """(D, D) float64: the sum of WᵀW / tr(WᵀW C) over all matrices W that read the stream, norms folded in.

    Args:
        model: the teacher.
        axis_map: its map.
        stream: of its class.
        covariance: (D, D) C, float64.
    """
    weights = folded(saved_tensors(model, axis_map), axis_map, stream)
    readers = {name for names in stream.readers.values() for name in names}
    total = torch.zeros_like(covariance)
    for tensor in axis_map.tensors:
        if starred(tensor.name) in readers:
            rows = weights[tensor.name].movedim(hidden_place(tensor.axes), -1).flatten(0, -2).float()
            product = (rows.T @ rows).double().cpu()
            total += product / (product * covariance).sum().clamp_min(1e-30)
    return total
