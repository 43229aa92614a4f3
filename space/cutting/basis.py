"""Bases of the residual stream: which directions to keep instead of coordinates, and how to rotate to them.

With the weight of every norm folded into the matrices that read the norm's output, a decoder with RMS norms
computes the same function in any orthogonal basis of the stream: all readers and writers are rotated
together. With norms that also subtract the mean, this holds for rotations that fix the mean's direction.

Let x̂ be the stream over its root mean square at the norms' inputs, C the mean of x̂x̂ᵀ over tokens and norms,
and M the sum of WᵀW / tr(WᵀW C) over all matrices W that read the stream. *Principal* directions are the
leading eigenvectors of C; *weighted* directions are those of M^¼ C M^¼, which also takes into account how
strongly each direction is read. One rotation serves the whole model, so every size is a prefix.

A norm whose weight no matrix can take over, such as the final one where the head is the embedding table, acts
along coordinates: in another basis it would be diag(w) turned, which is not diagonal. There it gets the best
diagonal instead, d_j = E[(Rᵀ diag(w) x̂)_j (Rᵀx̂)_j] / E[(Rᵀx̂)_j²]. A few coordinates whose weight is far from
the others', and on which the stream is large, would spoil this; so these are kept as they are, first of all,
and the others are turned among themselves.

Norms that subtract the mean ignore the direction 1 = (1, …, 1), and in a student they subtract the mean of
the kept coordinates. So the new coordinates are Σ aⱼhⱼ, with aⱼ the components along the best directions
and hⱼ the columns of Helmert's matrix, whose first j + 1 entries sum to zero and whose others are zero.
Over the first k coordinates, the norm sees a₁ … aₖ₋₁ exactly; it subtracts all later hⱼ as a constant. Beside
coordinates that are kept this holds of the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor, ResidualStream, wildcard_name
from space.input_error import InputError

Weights = Mapping[str, Tensor]
#: How the names of a basis's tensors in a file begin.
_FILE = "basis."
#: Smallest weight of a norm to divide by, relative to its largest; less would lose precision.
_LEAST_GAIN = 1e-4


def fold_norms(weights: Weights, axis_map: AxisMap, stream: ResidualStream) -> dict[str, Tensor]:
    """Return weights of the same function, with every norm's weight folded into the matrices that read it.

    Args:
        weights: by name; not modified.
        axis_map: of the model.
        stream: the residual stream of its class.

    Raises:
        InputError: a norm has a bias in a dimension where its weight is close to 0.
    """
    folding = NormFolding(weights, axis_map, stream)
    return dict(weights) | {tensor.name: folding.folded(tensor) for tensor in axis_map.tensors}


class NormFolding:
    """Folds norms into their readers, one tensor at a time.

    Args:
        weights: by name; not modified.
        axis_map: of the model.
        stream: the residual stream of its class.
    """

    def __init__(self, weights: Weights, axis_map: AxisMap, stream: ResidualStream) -> None:
        self.weights, self.offset = weights, stream.offset
        self._norms: set[str] = set()
        self._norm_of_bias: dict[str, str] = {}
        self._read_by: dict[str, list[MappedTensor]] = defaultdict(list)
        for norm in axis_map.tensors:
            readers = stream.readers.get(wildcard_name(norm.name))
            if readers is not None:
                self._norms.add(norm.name)
                self._norm_of_bias[f"{norm.module}.bias"] = norm.name
                for reader in readers:
                    self._read_by[reader].append(norm)

    def folded(self, tensor: MappedTensor) -> Tensor:
        """Return a tensor of the model with folded norms: a new one, or the given one where nothing changes.

        Raises:
            InputError: it is the bias of a norm whose weight is close to 0 in one of its dimensions.
        """
        name, values = tensor.name, self.weights[tensor.name]
        if name in self._norms:
            return torch.full_like(values, 1 - self.offset)
        if name in self._norm_of_bias:
            return _bias_before_gain(values, self._gain(self._norm_of_bias[name]), name)
        for norm in self._read_by.get(wildcard_name(name), ()):
            if norm.layer in (None, tensor.layer):
                dim = hidden_dimension(tensor.axes)
                values = (values.movedim(dim, -1) * self._gain(norm.name)).movedim(-1, dim)
        return values

    def _gain(self, norm: str) -> Tensor:
        return self.weights[norm] + self.offset


def _bias_before_gain(bias: Tensor, gain: Tensor, name: str) -> Tensor:
    """Return (D,) the bias that, added before the gain is applied, equals ``bias`` added after it."""
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
    """Return weights of the same function in another basis of the stream.

    Args:
        weights: from ``fold_norms``.
        axis_map: of the model.
        stream: the residual stream of its class.
        rotation: (D, D) orthogonal, with the new directions in columns.
    """
    return dict(weights) | {
        tensor.name: rotated(weights[tensor.name], tensor, stream, rotation) for tensor in axis_map.tensors
    }


def rotated(values: Tensor, tensor: MappedTensor, stream: ResidualStream, rotation: Tensor) -> Tensor:
    """Return one tensor of ``rotate_stream``: a new one, or ``values`` where it is not turned.

    Folded norms are the same in any basis; those that are not folded have their gains from ``Basis.norms``.
    """
    name = wildcard_name(tensor.name)
    if not tensor.has(Axis.HIDDEN) or name in stream.readers or name in stream.unfolded:
        return values
    dim = hidden_dimension(tensor.axes)
    matrix = rotation.to(values.device, torch.promote_types(values.dtype, torch.float32))
    along = (values.movedim(dim, -1).to(matrix.dtype) @ matrix).to(values.dtype)
    return along.movedim(-1, dim).contiguous()


def hidden_dimension(axes: tuple[frozenset[Axis], ...]) -> int:
    """Return the index of the dimension that belongs to the hidden axis."""
    return next(dim for dim, moving in enumerate(axes) if Axis.HIDDEN in moving)


class BasisName(StrEnum):
    """The directions of the stream that students keep."""

    COORDINATE = "coordinate"
    PRINCIPAL = "principal"
    WEIGHTED = "weighted"


@dataclass(frozen=True, eq=False)
class UnfoldedNorm:
    """A norm whose weight cannot be folded, in the teacher's coordinates."""

    gain: Tensor
    """(D,) float64, its weight plus the offset of its class."""
    second: Tensor
    """(D, D) float64, the mean of x̂x̂ᵀ at its input."""


@dataclass(frozen=True, eq=False)
class TurnedNorm:
    """A norm whose weight cannot be folded, in a basis."""

    gain: Tensor
    """(D,) float32, by which it multiplies each direction: the best diagonal."""
    energy: Tensor
    """(D,) float32, the mean of x̂² along each direction at its input."""

    def gains(self, kept: int) -> Tensor:
        """Return (kept,) gains of the norm over the first directions alone, as ``Basis.gain`` does."""
        return self.gain[:kept] * root_mean(self.energy, kept)


@dataclass(frozen=True, eq=False)
class Basis:
    """An orthogonal basis of the stream of D dimensions."""

    rotation: Tensor
    """(D, D) orthogonal float32, with the new directions in columns, best first."""
    energy: Tensor
    """(D,) float32, the contribution of each new direction to the squared norm of x̂; they sum to D."""
    kept: int = 0
    """How many of the directions, the first ones, are coordinates that were kept."""
    norms: Mapping[str, TurnedNorm] = field(default_factory=dict)
    """The norms whose weights cannot be folded, by the names of the weights."""
    loss_added: float = 0.0
    """What these norms cost the whole teacher, in nats per token; 0 where all norms can be folded."""

    def gain(self, kept: int) -> float:
        """Return the weight for a norm over the first ``kept`` directions.

        The norm divides by the root mean square of these directions, where the teacher divides by that of
        all; on average the two differ by a factor √(Σ energy / kept).
        """
        return root_mean(self.energy, kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a file, by name; ``of_tensors`` reads them."""
        found = {f"{_FILE}rotation": self.rotation, f"{_FILE}energy": self.energy}
        for name, norm in self.norms.items():
            found |= {f"{_FILE}gain.{name}": norm.gain, f"{_FILE}norm.{name}": norm.energy}
        return found

    @classmethod
    def of_tensors(cls, tensors: Weights, kept: int, loss_added: float) -> Basis:
        """Make a basis of what ``tensors`` returned."""
        gain = f"{_FILE}gain."
        norms = {name.removeprefix(gain) for name in tensors if name.startswith(gain)}
        found = {
            name: TurnedNorm(tensors[f"{gain}{name}"], tensors[f"{_FILE}norm.{name}"])
            for name in sorted(norms)
        }
        return cls(tensors[f"{_FILE}rotation"], tensors[f"{_FILE}energy"], kept, found, loss_added)


def root_mean(energy: Tensor, kept: int) -> float:
    """Return the root mean square of a normalised state over its first ``kept`` of (D,) directions."""
    return float((energy[:kept].sum() / kept).sqrt())


def basis_of(
    name: BasisName,
    covariance: Tensor,
    reading: Tensor,
    centred: bool = False,
    kept: Sequence[int] = (),
    norms: Mapping[str, UnfoldedNorm] | None = None,
) -> Basis:
    """Compute the principal or the weighted basis.

    Args:
        name: the basis; not the coordinate one, which needs no rotation.
        covariance: (D, D) C, float64.
        reading: (D, D) M, float64; the principal basis ignores it.
        centred: whether the norms subtract the mean; C is then of centred states.
        kept: the coordinates to keep, first to last.
        norms: those whose weights cannot be folded, by the names of the weights.
    """
    assert name is not BasisName.COORDINATE, "coordinates are ranked, not turned"
    own = torch.eye(len(covariance), dtype=torch.float64)
    turned = sorted(set(range(len(covariance))) - set(kept))
    inner = helmert(len(turned))[:, :-1] if centred else torch.eye(len(turned)).double()
    directions = inner @ _best(
        name, *(inner.T @ of[turned][:, turned] @ inner for of in (covariance, reading))
    )
    block = centred_rotation(directions) if centred else directions
    # What the first k coordinates hold: in Helmert's frame the directions up to k − 1, after the mean.
    mean = torch.full((len(turned), int(centred)), len(turned) ** -0.5, dtype=torch.float64)
    held = torch.cat([own[:, list(kept)], own[:, turned] @ torch.cat([mean, directions], 1)], 1)
    rotation = torch.cat([own[:, list(kept)], own[:, turned] @ block], 1)

    def energy(second: Tensor) -> Tensor:
        return (held * (second @ held)).sum(0).float()

    found = {
        weight: TurnedNorm(best_diagonal(norm, rotation).float(), energy(norm.second))
        for weight, norm in (norms or {}).items()
    }
    return Basis(rotation.float().contiguous(), energy(covariance), len(kept), found)


def _best(name: BasisName, covariance: Tensor, reading: Tensor) -> Tensor:
    """Return the best directions in columns, best first."""
    root = _power(reading, 0.25) if name is BasisName.WEIGHTED else torch.eye(len(reading)).double()
    best: Tensor = torch.linalg.eigh(root @ covariance @ root).eigenvectors.flip(-1)
    return best


def best_diagonal(norm: UnfoldedNorm, rotation: Tensor) -> Tensor:
    """Return (D,) the gains along the directions of (D, D) that are the norm's in least squares."""
    along = norm.second @ rotation
    squares = (rotation * along).sum(0)
    products = (rotation * (norm.gain[:, None] * along)).sum(0)
    return torch.where(squares > 0, products / squares, (rotation.square() * norm.gain[:, None]).sum(0))


def outlier_shares(norms: Mapping[str, UnfoldedNorm]) -> Tensor:
    """Return (D,) how much each coordinate would spoil a turned basis.

    It is the energy that its weight adds or takes beyond the median weight, (w − median)² E[x̂²], as a share
    of the norm's output, summed over the norms.
    """
    shares = []
    for norm in norms.values():
        energy = norm.second.diagonal()
        own = (norm.gain - norm.gain.median()).square() * energy
        shares.append(own / (norm.gain.square() * energy).sum().clamp_min(1e-30))
    return torch.stack(shares).sum(0)


def centred_rotation(directions: Tensor) -> Tensor:
    """Return the (D, D) rotation whose coordinates keep (D, D − 1) orthonormal directions of zero mean."""
    frame = helmert(len(directions)).to(directions)
    return torch.cat([directions, frame[:, -1:]], 1) @ frame.T


def helmert(size: int) -> Tensor:
    """Return Helmert's orthogonal matrix (D, D) in float64, with its constant column last.

    Column j < D − 1 holds 1 / √((j + 1)(j + 2)) in its first j + 1 entries, and in the next the entry that
    makes the column sum to zero (H. O. Lancaster, "The Helmert matrices", 1965).
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
