"""Importance rankings: scores of every unit of every axis, the orders that follow from them, and their file.

A ranking also says which layers a student keeps. Single layers are dropped by their scores, or a block of
consecutive layers by what it costs to drop them together. Layers of several kinds (attention, state space,
mixture) differ in size. So that the number of layers determines the number of parameters, and no kind
disappears before the others, each kind keeps a share by Adams's apportionment method, which rounds up and
never takes a layer back as the total grows.

A teacher of 32 layers with 14336 neurons each has half a million scores. For the report, a profile condenses
them to mean scores over consecutive ranks and the cumulative share of energy that the best units hold.

Legend: L layers, D hidden, F mlp, H heads, K kv heads, G = H / K heads of a group, E experts,
I neurons of an expert, S neurons of the shared expert, d entries of a head.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from space.axes.architecture import Axis
from space.axes.layers import layers_of_each_kind
from space.cutting.basis import Basis

#: Maximum number of groups in a row; a row of fewer units has one group per unit.
MOST_GROUPS = 128
_DIGITS = 4


@dataclass(frozen=True)
class Profile:
    """The condensed scores of one axis, best units first.

    A row is a layer, or the whole model where all layers share the units. The neurons of experts are ranked
    within their expert, and their row is the mean over experts. A layer without the axis has None as its row.
    """

    edges: tuple[int, ...]
    """(g + 1,) the ranks that bound the groups, from 0 to the number of units."""
    scores: tuple[tuple[float, ...] | None, ...]
    """(rows, g) the mean score of the units of each group."""
    energy: tuple[tuple[float, ...] | None, ...]
    """(rows, g + 1) the share of the row's energy that units ranked before each edge hold: from 0 to 1."""

    @property
    def units(self) -> int:
        """The number of units of a row."""
        return self.edges[-1]


def profile_of(scores: Tensor, in_order: bool = False) -> Profile:
    """Compute the profile of an axis; the energy of a unit is the square of its score.

    Args:
        scores: (units,), (L, units) or (L, E, units), none of them negative.
        in_order: whether the units already come best first, whatever their scores.
    """
    best_first = scores.double() if in_order else scores.double().sort(dim=-1, descending=True).values
    edges = _edges(scores.shape[-1])
    rows, energies = _rows(best_first), _rows(best_first.square())
    present = [bool(row.any()) or not bool(rows.any()) for row in rows]
    return Profile(
        tuple(edges.tolist()),
        _to_floats([_group_means(row, edges) for row in rows], present),
        _to_floats([_shares(row)[edges] for row in energies], present),
    )


def _rows(values: Tensor) -> Tensor:
    """Return (rows, units), averaged over experts."""
    if values.ndim == 1:
        return values[None]
    return values.mean(1) if values.ndim == 3 else values


def _edges(units: int) -> Tensor:
    return torch.linspace(0, units, min(units, MOST_GROUPS) + 1, dtype=torch.float64).round().long()


def _group_means(row: Tensor, edges: Tensor) -> Tensor:
    sums = torch.cat([row.new_zeros(1), row.cumsum(0)])
    return (sums[edges[1:]] - sums[edges[:-1]]).clamp_min(0) / edges.diff()


def _shares(row: Tensor) -> Tensor:
    """Return (units + 1,) cumulative shares of the sum; in equal steps if the sum is 0."""
    sums = torch.cat([row.new_zeros(1), row.cumsum(0)])
    if not sums[-1] > 0:
        return torch.linspace(0, 1, len(sums), dtype=torch.float64)
    return sums / sums[-1]


def _to_floats(rows: Sequence[Tensor], present: Sequence[bool]) -> tuple[tuple[float, ...] | None, ...]:
    return tuple(
        tuple(float(f"{value:.{_DIGITS}g}") for value in row.tolist()) if has else None
        for row, has in zip(rows, present, strict=True)
    )


def descending(scores: Tensor) -> Tensor:
    """Return the order from highest to lowest score along the last dimension; ties keep their order."""
    return scores.argsort(dim=-1, descending=True, stable=True)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The importance scores of every unit of a teacher; higher is more important."""

    scores: Mapping[Axis, Tensor]
    """HIDDEN (D,) over the whole model; LAYERS (L,); HEADS (L, H); MLP (L, F); EXPERTS (L, E);
    EXPERT_MLP (L, E, I); SHARED_MLP (L, S); HEAD_DIM (L, d). Layers without an axis have rows of zeros."""
    kv_heads: int
    """K of the teacher."""
    method: str
    """How the scores were computed, in words for the report."""
    fingerprint: str
    """Fingerprint of teacher, calibration set and method."""
    expert_groups: int = 1
    """Number of groups that experts are routed in; each group keeps equally many experts."""
    basis: Basis | None = None
    """The basis that hidden is rotated to and cut in; None to keep the best coordinates."""
    blocks: Tensor | None = None
    """(L, L) float32: [n − 1, i] is the cost of dropping the n layers from i on; +inf where they would end
    beyond the last layer, or none would be left. None to drop single layers by their scores."""

    @cached_property
    def orders(self) -> dict[Axis, Tensor]:
        """The units of every axis, best first along the last dimension.

        HIDDEN (D,); KV_HEADS (L, K), each group scored by the sum over its heads; HEADS (L, K, G) within
        each group; EXPERTS (L, groups, E / groups) within each group; all others shaped like the scores.
        """
        scores = dict(self.scores)
        if Axis.HEADS in scores:
            scores[Axis.HEADS] = scores[Axis.HEADS].unflatten(-1, (self.kv_heads, -1))
            scores[Axis.KV_HEADS] = scores[Axis.HEADS].sum(-1)
        if Axis.EXPERTS in scores:
            scores[Axis.EXPERTS] = scores[Axis.EXPERTS].unflatten(-1, (self.expert_groups, -1))
        return {axis: descending(of) for axis, of in scores.items()}

    def order(self, axis: Axis, layer: int | None, within: int | None = None) -> Tensor:
        """Return the units of an axis, best first.

        Args:
            axis: any but LAYERS.
            layer: the layer's number; HIDDEN has one order for all layers.
            within: the KV group for HEADS, the group of experts for EXPERTS, the expert for EXPERT_MLP.

        Returns:
            (units,) numbers of units, counted within the group or expert.
        """
        if axis is Axis.HIDDEN:
            return self.orders[axis]
        assert layer is not None, f"{axis} lies within the layers"
        order = self.orders[axis][layer]
        return order[within or 0] if order.ndim == 2 else order

    def save(self, path: Path) -> None:
        """Write scores and orders to a file atomically."""
        tensors = {axis.value: scores.contiguous() for axis, scores in self.scores.items()}
        tensors |= {f"order.{axis.value}": order.contiguous() for axis, order in self.orders.items()}
        metadata = {
            "kv_heads": self.kv_heads,
            "method": self.method,
            "fingerprint": self.fingerprint,
            "expert_groups": self.expert_groups,
        }
        if self.basis is not None:
            tensors |= self.basis.tensors()
            metadata |= {"kept": self.basis.kept, "loss_added": self.basis.loss_added}
        if self.blocks is not None:
            tensors["layers.blocks"] = self.blocks.contiguous()
        new = path.with_suffix(".new")
        save_file(tensors, new, metadata={"slimsearch": json.dumps(metadata)})
        os.replace(new, path)

    @classmethod
    def load(cls, path: Path, fingerprint: str | None) -> Ranking | None:
        """Load a ranking; None if the file is missing, damaged or has another fingerprint.

        Args:
            path: of the file.
            fingerprint: the expected fingerprint; None to accept any.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
                if "fingerprint" not in metadata or fingerprint not in (None, metadata["fingerprint"]):
                    return None
                names = [name for name in file.keys() if "." not in name]  # noqa: SIM118
                scores = {Axis(name): file.get_tensor(name) for name in names}
                parts = {name: file.get_tensor(name) for name in file.keys() if name.startswith("basis.")}  # noqa: SIM118
                about = {name: metadata.pop(name) for name in ("kept", "loss_added") if name in metadata}
                basis = Basis.of_tensors(parts, **about) if parts else None
                has_blocks = "layers.blocks" in file.keys()  # noqa: SIM118
                blocks = file.get_tensor("layers.blocks") if has_blocks else None
        except (OSError, SafetensorError):
            return None
        return cls(scores, **metadata, basis=basis, blocks=blocks)

    def profiles(self) -> dict[str, Profile]:
        """Return the profile of every axis except layers, for the report.

        With a basis, the units of hidden are the basis's directions in their order, with their energy.
        """
        found = {axis.value: profile_of(of) for axis, of in self.scores.items() if axis is not Axis.LAYERS}
        if self.basis is not None:
            found[Axis.HIDDEN.value] = profile_of(self.basis.energy.clamp_min(0).sqrt(), in_order=True)
        return found


def kept_layers(scores: Tensor, layers: int, kinds: Sequence[int], blocks: Tensor | None = None) -> list[int]:
    """Return the layers that a student keeps, in the teacher's order.

    If blocks are scored and dropping one leaves every kind its share, all layers except the cheapest such
    block; otherwise the most important layers of each kind.

    Args:
        scores: (L,) importance of each layer.
        layers: how many layers to keep, at least one.
        kinds: (L,) the kind of each layer.
        blocks: (L, L) the cost of dropping consecutive layers, as in ``Ranking``.
    """
    room = layers_of_each_kind(kinds, layers)
    if blocks is not None and (start := _cheapest_block(blocks, layers, kinds, room)) is not None:
        stop = start + len(kinds) - layers
        return [layer for layer in range(len(kinds)) if not start <= layer < stop]
    kept = []
    for layer in descending(scores).tolist():
        if room[kinds[layer]]:
            room[kinds[layer]] -= 1
            kept.append(layer)
    return sorted(kept)


def _cheapest_block(blocks: Tensor, layers: int, kinds: Sequence[int], room: Mapping[int, int]) -> int | None:
    """Return the start of the cheapest block that leaves every kind its share; of equal ones the last."""
    length = len(kinds) - layers
    if not length:
        return None
    gone = Counter(kinds) - Counter(room)
    starts = [start for start in range(layers + 1) if Counter(kinds[start : start + length]) == gone]
    costs = blocks[length - 1].tolist()
    return min(starts, key=lambda start: (costs[start], -start), default=None)
