"""Second moments of the inputs of matrices and norms on the calibration set, which repairs are based on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor, wildcard_name
from space.axes.layout import Layout, positions
from space.cutting.ranking import Ranking


@dataclass(frozen=True)
class InputMoment:
    """The second moment of a matrix's input."""

    place: int
    """The matrix's dimension that is contracted with the input."""
    second: Tensor
    """(n, n) float64, the mean of x xᵀ over tokens; (E, n, n) where each of E experts reads its own."""


@dataclass(frozen=True)
class NormEnergy:
    """How the energy of a norm's input is distributed over the hidden dimensions."""

    mean: Tensor
    """(D,) float64, the mean over tokens of x̂², with x̂ the input over its root mean square; it sums to D."""
    offset: float
    """The constant that the norm adds to its weights: 0 in most classes, 1 in some."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of one teacher on one calibration set: 8 n² bytes for each matrix with n inputs."""

    reads: Mapping[str, InputMoment]
    """For the matrices that read neurons or heads, by name."""
    energies: Mapping[str, NormEnergy]
    """For the norms over hidden that divide by the root mean square, by the name of the weight."""
    fingerprint: str
    """Fingerprint of teacher and calibration set."""
    stream: Mapping[str, Tensor] = field(default_factory=dict)
    """(D, D) float64, the mean of x̂x̂ᵀ with x̂ the norm's input over its root mean square, by the name of the
    norm's weight; 8 D² bytes. Only for streams that can be rotated and are not centred. Sorted moments have
    it only if the ranking has a basis, and then in that basis."""
    norm_of: Mapping[str, str] = field(default_factory=dict)
    """From each matrix to the norm whose output it reads, for the norms in ``stream``."""

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {f"second.{name}": read.second.contiguous() for name, read in self.reads.items()}
        tensors |= {f"energy.{name}": energy.mean for name, energy in self.energies.items()}
        tensors |= {f"stream.{name}": second for name, second in self.stream.items()}
        metadata = {
            "fingerprint": self.fingerprint,
            "places": {name: read.place for name, read in self.reads.items()},
            "offsets": {name: energy.offset for name, energy in self.energies.items()},
            "stream": list(self.stream),
        }
        new = path.with_suffix(".new")
        save_file(tensors, new, metadata={"slimsearch": json.dumps(metadata)})
        os.replace(new, path)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Moments | None:
        """Load moments; None if the file is missing, damaged or has another fingerprint."""
        try:
            with safe_open(path, "pt") as file:
                metadata = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
                if metadata.get("fingerprint") != fingerprint:
                    return None
                reads = {
                    name: InputMoment(place, file.get_tensor(f"second.{name}"))
                    for name, place in metadata["places"].items()
                }
                energies = {
                    name: NormEnergy(file.get_tensor(f"energy.{name}"), offset)
                    for name, offset in metadata["offsets"].items()
                }
                stream = {name: file.get_tensor(f"stream.{name}") for name in metadata["stream"]}
        except (OSError, SafetensorError):
            return None
        return cls(reads, energies, fingerprint, stream)

    def sorted_by(self, axis_map: AxisMap, ranking: Ranking) -> Moments:
        """Return the moments of the canonical teacher, with every axis in the ranking's order.

        With a basis, norms already have the gain of its directions, so ``energies`` is empty.

        Args:
            axis_map: the teacher's.
            ranking: the ranking that the weights are sorted by.
        """
        tensors = {tensor.name: tensor for tensor in axis_map.tensors}
        order = _Order(axis_map, ranking)
        reads = {
            name: replace(read, second=order.second(tensors[name], read)) for name, read in self.reads.items()
        }
        energies = {
            name: replace(energy, mean=energy.mean[order.of(tensors[name], 0)])
            for name, energy in self.energies.items()
            if ranking.basis is None
        }
        stream = self._rotated_stream(ranking)
        norm_of = {
            reader.name: norm
            for norm in stream
            for reader in axis_map.tensors
            if tensors[norm].layer in (None, reader.layer) and _reads(axis_map, reader, norm)
        }
        return replace(self, reads=reads, energies=energies, stream=stream, norm_of=norm_of)

    def _rotated_stream(self, ranking: Ranking) -> dict[str, Tensor]:
        if ranking.basis is None:
            return {}
        rotation = ranking.basis.rotation.double()
        return {name: rotation.T @ second @ rotation for name, second in self.stream.items()}


def _reads(axis_map: AxisMap, reader: MappedTensor, norm: str) -> bool:
    return (
        axis_map.stream is not None
        and wildcard_name(reader.name) in axis_map.stream.readers[wildcard_name(norm)]
    )


class _Order:
    """The original positions of the entries of the canonical teacher's dimensions."""

    def __init__(self, axis_map: AxisMap, ranking: Ranking) -> None:
        self.axis_map, self.ranking = axis_map, ranking

    def of(self, tensor: MappedTensor, dim: int, expert: int | None = None) -> Tensor:
        """(n,) positions along one dimension."""
        layout: Layout = tensor.dimensions[dim]

        def units(axis: Axis, within: int | None) -> Tensor:
            order = self.ranking.order(axis, tensor.layer, within)
            return order if axis in self.axis_map.sortable else torch.arange(len(order))

        return positions(layout, units, expert)

    def second(self, tensor: MappedTensor, read: InputMoment) -> Tensor:
        """The sorted second moment; experts in their new order, each with its own order of neurons."""
        if read.second.ndim == 2:
            index = self.of(tensor, read.place)
            return read.second[index][:, index]
        dim = expert_dimension(tensor)
        assert dim is not None, "several moments belong to several experts"
        rows = []
        for expert in self.of(tensor, dim).tolist():
            index = self.of(tensor, read.place, expert)
            rows.append(read.second[expert][index][:, index])
        return torch.stack(rows)


#: Axes whose units are read by a projection of their own.
_READ = frozenset({Axis.MLP, Axis.SHARED_MLP, Axis.EXPERT_MLP, Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_DIM})


def reading_dimensions(tensor: MappedTensor) -> list[int]:
    """Return the dimensions of a layer's matrix along which it may read neurons or heads."""
    if tensor.layer is None or len(tensor.dimensions) < 2:
        return []
    return [
        dim for dim, axes in enumerate(tensor.axes) if axes & _READ and not axes & {Axis.HIDDEN, Axis.EXPERTS}
    ]


def moment_bytes(axis_map: AxisMap) -> int:
    """Return an upper bound on the moments' bytes: 8 n² for each matrix that may read n neurons or heads."""
    total = 0
    for tensor in axis_map.tensors:
        each = expert_dimension(tensor)
        experts = 1 if each is None else tensor.dimensions[each].length
        lengths = [tensor.dimensions[dim].length for dim in reading_dimensions(tensor)]
        total += experts * sum(8 * length**2 for length in lengths)
    return total


def expert_dimension(tensor: MappedTensor) -> int | None:
    """Return the dimension that belongs to the experts axis, or None if there is none."""
    return next((dim for dim, axes in enumerate(tensor.axes) if Axis.EXPERTS in axes), None)
