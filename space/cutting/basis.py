"""Directions of the residual stream to keep, in place of coordinates, and the model turned to them.

A decoder whose norms divide by the root mean square computes the same in any orthogonal basis of the
stream, once the weights of every norm have been folded into the matrices that read it: readers and
writers are turned, and all of them at once. Where norms also subtract the mean, it does so in any basis that
leaves the direction of the mean where it is.

With every norm's weights folded into the matrices that read it, let x̂ be the stream over its root mean
square at the norms' inputs, C the mean of x̂x̂ᵀ over tokens and norms, and M the sum of WᵀW / tr(WᵀW C)
over all matrices W that read the stream. *Principal* directions are the leading eigenvectors of C;
*weighted* ones those of M^¼ C M^¼, which also asks how much each direction is read. One rotation serves
the whole model, so that every size is a prefix.

Norms that subtract the mean read nothing of the direction 1 = (1, …, 1), and subtract the mean of whatever
coordinates a student keeps. So the new coordinates are Σ aⱼhⱼ over the best directions' aⱼ, with hⱼ the
columns of Helmert's matrix: hⱼ sums to zero over its first j + 1 entries and has no others. Of any k
coordinates the norm then sees a₁ … aₖ₋₁ whole, and all later hⱼ as a constant, which it takes away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, ResidualStream, wildcard_name
from space.input_error import InputError

Weights = Mapping[str, Tensor]
#: Of a norm's weights, relative to the largest: to divide by less would lose digits.
_LEAST_GAIN = 1e-4


def fold_norms(weights: Weights, axis_map: AxisMap, stream: ResidualStream) -> dict[str, Tensor]:
    """The same function with every norm's weight moved into the matrices that read it.

    Args:
        weights: by name; stay as they are.
        axis_map: of the model.
        stream: of its class.

    Raises:
        InputError: a norm has a bias where its weight is next to nothing.
    """
    found = dict(weights)
    for norm in axis_map.tensors:
        readers = stream.readers.get(wildcard_name(norm.name))
        if readers is None:
            continue
        gain = weights[norm.name] + stream.offset
        for tensor in axis_map.tensors:
            if wildcard_name(tensor.name) in readers and norm.layer in (None, tensor.layer):
                place = hidden_dimension(tensor.axes)
                found[tensor.name] = (found[tensor.name].movedim(place, -1) * gain).movedim(-1, place)
        found[norm.name] = torch.full_like(weights[norm.name], 1 - stream.offset)
        bias = f"{norm.module}.bias"
        if bias in weights:
            found[bias] = _behind(weights[bias], gain, bias)
    return found


def _behind(bias: Tensor, gain: Tensor, name: str) -> Tensor:
    """(D,) what has to be added before the gain is applied, so that the bias is what is added after it."""
    lost = (gain.abs() < _LEAST_GAIN * gain.abs().max()) & (bias != 0)
    if bool(lost.any()):
        raise InputError(
            "A basis other than coordinates needs norms that let through what they add",
            f"{name} adds to {int(lost.sum())} dimensions whose weight is next to 0",
            "Take --basis coordinate",
        )
    return torch.where(bias == 0, torch.zeros_like(bias), bias / gain)


def rotate_stream(
    weights: Weights, axis_map: AxisMap, stream: ResidualStream, rotation: Tensor
) -> dict[str, Tensor]:
    """The same function in another basis of the stream.

    Args:
        weights: from ``fold_norms``.
        axis_map: of the model.
        stream: of its class.
        rotation: (D, D) orthogonal, new directions in columns.
    """
    found = dict(weights)
    for tensor in axis_map.tensors:
        if tensor.has(Axis.HIDDEN) and wildcard_name(tensor.name) not in stream.readers:
            values, place = weights[tensor.name], hidden_dimension(tensor.axes)
            matrix = rotation.to(values.device, torch.promote_types(values.dtype, torch.float32))
            along = (values.movedim(place, -1).to(matrix.dtype) @ matrix).to(values.dtype)
            found[tensor.name] = along.movedim(-1, place).contiguous()
    return found


def hidden_dimension(axes: tuple[frozenset[Axis], ...]) -> int:
    """The dimension that runs along hidden."""
    return next(place for place, moving in enumerate(axes) if Axis.HIDDEN in moving)


class BasisName(StrEnum):
    """Which directions of the stream students keep."""

    COORDINATE = "coordinate"
    PRINCIPAL = "principal"
    WEIGHTED = "weighted"


@dataclass(frozen=True, eq=False)
class Basis:
    """A turned basis of the stream of D dimensions."""

    rotation: Tensor
    """(D, D) orthogonal float32, new directions in columns, best first."""
    energy: Tensor
    """(D,) float32, what each new direction adds to the mean square of x̂ that is kept; their sum is D."""

    def gain(self, kept: int) -> float:
        """What a norm over the first ``kept`` directions has to multiply by.

        It divides by their root mean square, where the teacher divides by that of all; on average the
        two differ by √(Σ energy / kept).
        """
        return float((self.energy[:kept].sum() / kept).sqrt())


def basis_of(name: BasisName, covariance: Tensor, reading: Tensor, centred: bool = False) -> Basis:
    """The principal or the weighted basis.

    Args:
        name: which; the coordinate basis needs no rotation.
        covariance: (D, D) C, float64.
        reading: (D, D) M, float64; the principal basis does not look at it.
        centred: the norms subtract the mean; C is of centred states then.
    """
    assert name is not BasisName.COORDINATE, "coordinates are ranked, not turned"
    inner = helmert(len(covariance))[:, :-1] if centred else torch.eye(len(covariance)).double()
    varies, read = inner.T @ covariance @ inner, inner.T @ reading @ inner
    root = _power(read, 0.25) if name is BasisName.WEIGHTED else torch.eye(len(read)).double()
    best = inner @ torch.linalg.eigh(root @ varies @ root).eigenvectors.flip(-1)
    energy = (best * (covariance @ best)).sum(0)
    if centred:
        best, energy = centred_rotation(best), torch.cat([torch.zeros(1).double(), energy])
    return Basis(best.float().contiguous(), energy.float())


def centred_rotation(directions: Tensor) -> Tensor:
    """(D, D) rotation to coordinates that hold (D, D − 1) orthonormal directions without a mean."""
    frame = helmert(len(directions)).to(directions)
    return torch.cat([directions, frame[:, -1:]], 1) @ frame.T


def helmert(size: int) -> Tensor:
    """(D, D) float64, Helmert's orthogonal matrix with its constant column last.

    Column j < D − 1 holds 1 / √((j + 1)(j + 2)) in its first j + 1 entries and what makes their sum zero in
    the next (H. O. Lancaster, "The Helmert matrices", 1965).
    """
    counts = torch.arange(1, size).double()
    lengths = (counts * (counts + 1)).rsqrt()
    columns = torch.ones(size, size - 1).double().triu() * lengths
    columns[1:].diagonal().copy_(-counts * lengths)
    return torch.cat([columns, torch.full((size, 1), size**-0.5).double()], 1)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    power: Tensor = (vectors * values.clamp_min(0).pow(exponent)) @ vectors.T
    return power
