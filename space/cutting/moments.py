"""Second moments of the inputs of matrices and norms on the calibration set, which repairs are based on.

They may be larger than memory. So they lie in a file that is mapped into memory, and in a ranking's order
each is there only while it is used, on the device where a student is cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from space.axes.architecture import Axis
from space.axes.axis_map import AxisMap, MappedTensor, wildcard_name
from space.axes.layout import Layout, positions
from space.cutting.on_demand import OnDemand
from space.cutting.ranking import Ranking
from space.cutting.tensor_file import TensorWriter, header_bytes


@dataclass(frozen=True)
class InputMoment:
    """The second moment of a matrix's input."""

    place: int
    """The matrix's dimension that is contracted with the input."""
    second: Tensor
    """(n, n) the mean of x xᵀ over tokens; (E, n, n) where each of E experts reads its own."""
    tokens: Tensor | None = None
    """() or (E,) float32, the number of these tokens; None if it is not known."""
    half: Tensor | None = None
    """The part of ``second`` that comes from the first half of the tokens; None if they are plenty."""

    def to(self, device: torch.device) -> InputMoment:
        """Return the same on a device."""
        half = None if self.half is None else self.half.to(device)
        return replace(self, second=self.second.to(device), half=half)

    def of_experts(self, place: int) -> list[InputMoment]:
        """Return the moment of each expert, whose own matrix is contracted along ``place``."""
        count = len(self.second)
        tokens = [None] * count if self.tokens is None else self.tokens.unbind()
        halves = [None] * count if self.half is None else self.half.unbind()
        parts = zip(self.second, tokens, halves, strict=True)
        return [InputMoment(place, *part) for part in parts]


@dataclass(frozen=True)
class NormEnergy:
    """How the energy of a norm's input is distributed over the hidden dimensions."""

    mean: Tensor
    """(D,) the mean over tokens of x̂², with x̂ the input over its root mean square; it sums to D."""
    offset: float
    """The constant that the norm adds to its weights: 0 in most classes, 1 in some."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of one teacher on one calibration set: 4 n² bytes for each matrix with n inputs."""

    reads: Mapping[str, InputMoment]
    """For the matrices that read neurons or heads, by name."""
    energies: Mapping[str, NormEnergy]
    """For the norms over hidden that divide by the root mean square, by the name of the weight."""
    fingerprint: str
    """Fingerprint of teacher and calibration set."""
    stream: Mapping[str, Tensor] = field(default_factory=dict)
    """(D, D) the mean of x̂x̂ᵀ with x̂ the norm's input over its root mean square, by the name of the norm's
    weight; 4 D² bytes. Only for streams that can be rotated and are not centred. Sorted moments have it only
    if the ranking has a basis, and then in that basis."""
    norm_of: Mapping[str, str] = field(default_factory=dict)
    """From each matrix to the norm whose output it reads, for the norms in ``stream``."""
    tokens: int = 0
    """Tokens that each norm of ``stream`` read; 0 if that is not known."""
    halves: Mapping[str, Tensor] = field(default_factory=dict)
    """The parts of ``stream`` that come from the first half of the tokens; none if they are plenty."""

    def read(self, name: str, device: torch.device) -> InputMoment:
        """Return the moment of what a matrix reads on a device; it is sorted there."""
        return (
            self.reads.on(name, device) if isinstance(self.reads, OnDemand) else self.reads[name].to(device)
        )

    def at_norm(self, name: str, device: torch.device) -> Tensor:
        """Return the moment (D, D) of what a norm reads on a device; it is turned there."""
        return _on(self.stream, name, device)

    def half_at_norm(self, name: str, device: torch.device) -> Tensor | None:
        """Return the part of ``at_norm`` that comes from the first half of the tokens, if it is kept."""
        return _on(self.halves, name, device) if name in self.halves else None

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        with moments_file(path, self.fingerprint, [*self.reads, *self.energies, *self.stream]) as add:
            add(self)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Moments | None:
        """Map the moments of a file; None if it is missing, damaged or has another fingerprint.

        Do not change them. They stay valid while they are referenced, even if the file is removed.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
                if about.get("fingerprint") != fingerprint:
                    return None
                kept = set(file.keys())

                def tensor(kind: str, name: str) -> Tensor | None:
                    return file.get_tensor(f"{kind}.{name}") if f"{kind}.{name}" in kept else None

                reads = {
                    name: InputMoment(
                        place,
                        file.get_tensor(f"second.{name}"),
                        tensor("tokens", name),
                        tensor("half", name),
                    )
                    for name, place in about["places"].items()
                }
                energies = {
                    name: NormEnergy(file.get_tensor(f"energy.{name}"), offset)
                    for name, offset in about["offsets"].items()
                }
                stream = {name: file.get_tensor(f"stream.{name}") for name in about["stream"]}
                halves = {name: half for name in stream if (half := tensor("half", name)) is not None}
        except (OSError, SafetensorError):
            return None
        return cls(reads, energies, fingerprint, stream, tokens=about["tokens"], halves=halves)

    def sorted_by(self, axis_map: AxisMap, ranking: Ranking) -> Moments:
        """Return the moments of the canonical teacher, with every axis in the ranking's order.

        Those of matrices are sorted, and those of the stream turned, whenever one is asked for. With a basis,
        norms already have the gain of its directions, so ``energies`` is empty.

        Args:
            axis_map: the teacher's.
            ranking: the ranking that the weights are sorted by.
        """
        tensors = {tensor.name: tensor for tensor in axis_map.tensors}
        order = _Order(axis_map, ranking)

        def sorted_read(name: str, device: torch.device) -> InputMoment:
            return order.sorted(tensors[name], self.read(name, device))

        energies = {
            name: replace(energy, mean=energy.mean[order.of(tensors[name], 0)])
            for name, energy in self.energies.items()
            if ranking.basis is None
        }
        stream, halves = (
            self._rotated_stream(ranking, self.stream),
            self._rotated_stream(ranking, self.halves),
        )
        norm_of = {
            reader.name: norm
            for norm in stream
            for reader in axis_map.tensors
            if tensors[norm].layer in (None, reader.layer) and _reads(axis_map, reader, norm)
        }
        reads = OnDemand(self.reads, sorted_read)
        return replace(self, reads=reads, energies=energies, stream=stream, norm_of=norm_of, halves=halves)

    def _rotated_stream(self, ranking: Ranking, stream: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if ranking.basis is None:
            return {}
        rotation = ranking.basis.rotation

        @lru_cache(maxsize=1)  # several matrices read the output of one norm, one after the other
        def turned(name: str, device: torch.device) -> Tensor:
            to_basis = rotation.to(device, widest(device))
            return to_basis.T @ _on(stream, name, device).to(to_basis.dtype) @ to_basis

        return OnDemand(stream, turned)


def _on(stream: Mapping[str, Tensor], name: str, device: torch.device) -> Tensor:
    return stream.on(name, device) if isinstance(stream, OnDemand) else stream[name].to(device)


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices that have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def moments_file(path: Path, fingerprint: str, names: Iterable[str]) -> Iterator[Callable[[Moments], None]]:
    """Within the context, write moments part by part; at its end they replace those of an existing file.

    Args:
        path: the file.
        fingerprint: of teacher and calibration set.
        names: of all matrices and norms that may come.

    Yields:
        A function that appends the moments of some matrices and norms.

    Raises:
        OSError: the disk is full; an existing file is unchanged.
    """
    about = _About(fingerprint)
    with TensorWriter(path, _room(fingerprint, list(dict.fromkeys(names)))) as file:

        def add(part: Moments) -> None:
            for name, read in part.reads.items():
                about.places[name] = read.place
                _add(file, name, second=read.second, tokens=read.tokens, half=read.half)
            for name, energy in part.energies.items():
                about.offsets[name] = energy.offset
                _add(file, name, energy=energy.mean)
            for name, second in part.stream.items():
                about.stream.append(name)
                _add(file, name, stream=second, half=part.halves.get(name))
            about.tokens = max(about.tokens, part.tokens)

        yield add
        file.finish(about.metadata)


def _add(file: TensorWriter, name: str, **kinds: Tensor | None) -> None:
    for kind, values in kinds.items():
        if values is not None:
            file.add(f"{kind}.{name}", values)


@dataclass
class _About:
    """What a file says of its tensors."""

    fingerprint: str
    places: dict[str, int] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)
    stream: list[str] = field(default_factory=list)
    tokens: int = 0

    @property
    def metadata(self) -> dict[str, str]:
        return {"slimsearch": json.dumps(vars(self))}


def _room(fingerprint: str, names: Sequence[str]) -> int:
    """Return the bytes of a header in which every name has a tensor of every kind."""
    kinds, shape = ("second", "tokens", "half", "energy", "stream"), (10**6,) * 3
    entries = [(f"{kind}.{name}", torch.float32, shape) for name in names for kind in kinds]
    whole = _About(fingerprint, dict.fromkeys(names, 0), dict.fromkeys(names, 0.5), [*names], 10**15)
    return header_bytes(entries, whole.metadata)


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

    def sorted(self, tensor: MappedTensor, read: InputMoment) -> InputMoment:
        """The sorted second moment; experts in their new order, each with its own order of neurons."""
        half = None if read.half is None else self._sorted(tensor, read.place, read.half)
        tokens, dim = read.tokens, expert_dimension(tensor)
        if tokens is not None and tokens.ndim and dim is not None:
            tokens = tokens[self.of(tensor, dim)]
        return replace(read, second=self._sorted(tensor, read.place, read.second), tokens=tokens, half=half)

    def _sorted(self, tensor: MappedTensor, place: int, second: Tensor) -> Tensor:
        if second.ndim == 2:
            return _permuted(second, self.of(tensor, place))
        dim = expert_dimension(tensor)
        assert dim is not None, "several moments belong to several experts"
        experts = self.of(tensor, dim).tolist()
        return torch.stack([_permuted(second[e], self.of(tensor, place, e)) for e in experts])


def _permuted(second: Tensor, order: Tensor) -> Tensor:
    order = order.to(second.device)
    return second[order][:, order]


#: Axes whose units are read by a projection of their own.
_READ = frozenset({Axis.MLP, Axis.SHARED_MLP, Axis.EXPERT_MLP, Axis.HEADS, Axis.KV_HEADS, Axis.HEAD_DIM})


def reading_dimensions(tensor: MappedTensor) -> list[int]:
    """Return the dimensions of a layer's matrix along which it may read neurons or heads."""
    if tensor.layer is None or len(tensor.dimensions) < 2:
        return []
    return [
        dim for dim, axes in enumerate(tensor.axes) if axes & _READ and not axes & {Axis.HIDDEN, Axis.EXPERTS}
    ]


def expert_dimension(tensor: MappedTensor) -> int | None:
    """Return the dimension that belongs to the experts axis, or None if there is none."""
    return next((dim for dim, axes in enumerate(tensor.axes) if Axis.EXPERTS in axes), None)
