"""How what matrices and norms read varies on the calibration set: what repairs after a cut are made of."""

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
    """The second moment of what a matrix reads."""

    place: int
    """The matrix's dimension that the input runs along."""
    second: Tensor
    """(n, n) float64, the mean of x xᵀ over tokens; (E, n, n) where each of E experts reads its own."""


@dataclass(frozen=True)
class NormEnergy:
    """How the energy of what a norm reads lies in its dimensions."""

    mean: Tensor
    """(D,) float64, the mean over tokens of x̂², with x̂ the input over its root mean square; they add to D."""
    offset: float
    """What the norm adds to its weights: 0 in most classes, 1 in some."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one teacher on one calibration set: 8 n² bytes for each matrix that reads n numbers."""

    reads: Mapping[str, InputMoment]
    """By the name of the matrix: those that read neurons or heads."""
    energies: Mapping[str, NormEnergy]
    """By the name of the weight: norms over hidden that divide by the root mean square."""
    fingerprint: str
    """Of teacher and calibration set."""
    stream: Mapping[str, Tensor] = field(default_factory=dict)
    """By the name of the weight: (D, D) float64, the mean of x̂x̂ᵀ at each norm of a stream that can be turned
    and is not centred, with x̂ its input over the root mean square; 8 D² bytes. Sorted moments have it in a
    turned basis alone, in that basis."""
    norm_of: Mapping[str, str] = field(default_factory=dict)
    """The norm that each matrix reads behind, where ``stream`` has it."""

    def save(self, path: Path) -> None:
        """Write them; the file appears whole or not at all."""
        tensors = {f"second.{name}": read.second.contiguous() for name, read in self.reads.items()}
        tensors |= {f"energy.{name}": energy.mean for name, energy in self.energies.items()}
        tensors |= {f"stream.{name}": second for name, second in self.stream.items()}
        about = {
            "fingerprint": self.fingerprint,
            "places": {name: read.place for name, read in self.reads.items()},
            "offsets": {name: energy.offset for name, energy in self.energies.items()},
            "stream": list(self.stream),
        }
        new = path.with_suffix(".new")
        save_file(tensors, new, metadata={"slimsearch": json.dumps(about)})
        os.replace(new, path)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Moments | None:
        """Read them; None if there are none, or they are torn, or belong to something else."""
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
                if about.get("fingerprint") != fingerprint:
                    return None
                reads = {
                    name: InputMoment(place, file.get_tensor(f"second.{name}"))
                    for name, place in about["places"].items()
                }
                energies = {
                    name: NormEnergy(file.get_tensor(f"energy.{name}"), offset)
                    for name, offset in about["offsets"].items()
                }
                stream = {name: file.get_tensor(f"stream.{name}") for name in about["stream"]}
        except (OSError, SafetensorError):
            return None
        return cls(reads, energies, fingerprint, stream)

    def sorted_by(self, axis_map: AxisMap, ranking: Ranking) -> Moments:
        """The moments of the canonical teacher, every axis in the ranking's order.

        In a turned basis norms have the gain of its directions already, so that no energies are left.

        Args:
            axis_map: the teacher's.
            ranking: the one that the weights are sorted by.
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
        stream = self._turned(ranking)
        norm_of = {
            reader.name: norm
            for norm in stream
            for reader in axis_map.tensors
            if tensors[norm].layer in (None, reader.layer) and _reads(axis_map, reader, norm)
        }
        return replace(self, reads=reads, energies=energies, stream=stream, norm_of=norm_of)

    def _turned(self, ranking: Ranking) -> dict[str, Tensor]:
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
    """Where the entries of the canonical teacher's dimensions stood before."""

    def __init__(self, axis_map: AxisMap, ranking: Ranking) -> None:
        self.axis_map, self.ranking = axis_map, ranking

    def of(self, tensor: MappedTensor, place: int, expert: int | None = None) -> Tensor:
        """(n,) along one dimension."""
        layout: Layout = tensor.dimensions[place]

        def units(axis: Axis, within: int | None) -> Tensor:
            order = self.ranking.order(axis, tensor.layer, within)
            return order if axis in self.axis_map.sortable else torch.arange(len(order))

        return positions(layout, units, expert)

    def second(self, tensor: MappedTensor, read: InputMoment) -> Tensor:
        """The sorted second moment; experts in their new places, each with its neurons in its own order."""
        if read.second.ndim == 2:
            index = self.of(tensor, read.place)
            return read.second[index][:, index]
        place = expert_dimension(tensor)
        assert place is not None, "several moments belong to several experts"
        rows = []
        for expert in self.of(tensor, place).tolist():
            index = self.of(tensor, read.place, expert)
            rows.append(read.second[expert][index][:, index])
        return torch.stack(rows)


#: Axes whose units are read by a projection of their own.
_READ = frozenset({Axis.MLP, Axis.SHARED_MLP, Axis.EXPERT_MLP, Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_DIM})


def reading_dimensions(tensor: MappedTensor) -> list[int]:
    """The dimensions of a layer's matrix along which neurons or heads may be read."""
    if tensor.layer is None or len(tensor.dimensions) < 2:
        return []
    return [
        place
        for place, axes in enumerate(tensor.axes)
        if axes & _READ and not axes & {Axis.HIDDEN, Axis.EXPERTS}
    ]


def moment_bytes(axis_map: AxisMap) -> int:
    """The most that a teacher's moments can take: 8 n² for each matrix that reads, or writes, n numbers."""
    total = 0
    for tensor in axis_map.tensors:
        each = expert_dimension(tensor)
        experts = 1 if each is None else tensor.dimensions[each].length
        lengths = [tensor.dimensions[place].length for place in reading_dimensions(tensor)]
        total += experts * sum(8 * length**2 for length in lengths)
    return total


def expert_dimension(tensor: MappedTensor) -> int | None:
    """The dimension that runs along experts, one entry each; None if there is none."""
    return next((place for place, axes in enumerate(tensor.axes) if Axis.EXPERTS in axes), None)
