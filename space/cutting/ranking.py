"""What matters most in a teacher: scores of every unit of every axis, the orders that follow, and the file.

A teacher of 32 layers with 14336 neurons each has half a million scores. Sorted, they are a few smooth
curves: means over groups of units that follow one another by rank, and how much of the energy the best
units hold together.

Legend: L layers, D hidden, F mlp, H heads, K kv heads, G = H / K heads of a group, E experts,
I neurons of an expert, S neurons of the shared expert, d entries of a head.

Layers of several kinds (attention, state space, mixture) differ in size. So that a number of layers
fixes the number of parameters, and no kind dies out before the others, each kind keeps a share
given by Adams's rule of apportionment, which rounds up and never takes a layer back as the total grows.

Single layers are dropped by their scores, or several in a row by what they cost together.
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

#: Groups of a row; rows of fewer units have a group for each.
MOST_GROUPS = 128
_DIGITS = 4


@dataclass(frozen=True)
class Profile:
    """Of one axis, best units first.

    A row is a layer, or the whole model where all layers share the units. Units of experts are ranked within
    their expert, and a row is the mean over the experts. None in place of a row: the layer lacks the axis.
    """

    edges: tuple[int, ...]
    """(g + 1,) ranks between which the groups lie, from 0 to the number of units."""
    scores: tuple[tuple[float, ...] | None, ...]
    """(rows, g) the mean score of each group's units."""
    energy: tuple[tuple[float, ...] | None, ...]
    """(rows, g + 1) the share of the row's energy that the units above each edge hold: from 0 to 1."""

    @property
    def units(self) -> int:
        """Of a row."""
        return self.edges[-1]


def profile_of(scores: Tensor, in_order: bool = False) -> Profile:
    """The profile of an axis; the energy of a unit is the square of its score.

    Args:
        scores: (units,), (L, units) or (L, E, units), none of them negative.
        in_order: the units come best first, whatever their scores.
    """
    best_first = scores.double() if in_order else scores.double().sort(dim=-1, descending=True).values
    edges = _edges(scores.shape[-1])
    rows, energies = _rows(best_first), _rows(best_first.square())
    there = [bool(row.any()) or not bool(rows.any()) for row in rows]
    return Profile(
        tuple(edges.tolist()),
        _plain([_group_means(row, edges) for row in rows], there),
        _plain([_shares(row)[edges] for row in energies], there),
    )


def _rows(values: Tensor) -> Tensor:
    """(rows, units), experts averaged."""
    if values.ndim == 1:
        return values[None]
    return values.mean(1) if values.ndim == 3 else values


def _edges(units: int) -> Tensor:
    return torch.linspace(0, units, min(units, MOST_GROUPS) + 1, dtype=torch.float64).round().long()


def _group_means(row: Tensor, edges: Tensor) -> Tensor:
    sums = torch.cat([row.new_zeros(1), row.cumsum(0)])
    return (sums[edges[1:]] - sums[edges[:-1]]).clamp_min(0) / edges.diff()


def _shares(row: Tensor) -> Tensor:
    """(units + 1,) the share of the sum of the first so many; in equal steps where there is nothing."""
    sums = torch.cat([row.new_zeros(1), row.cumsum(0)])
    if not sums[-1] > 0:
        return torch.linspace(0, 1, len(sums), dtype=torch.float64)
    return sums / sums[-1]


def _plain(rows: Sequence[Tensor], there: Sequence[bool]) -> tuple[tuple[float, ...] | None, ...]:
    return tuple(
        tuple(float(f"{value:.{_DIGITS}g}") for value in row.tolist()) if has else None
        for row, has in zip(rows, there, strict=True)
    )


def descending(scores: Tensor) -> Tensor:
    """The order from the highest score to the lowest along the last dimension; ties keep their order."""
    return scores.argsort(dim=-1, descending=True, stable=True)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Importance of every unit of a teacher; higher is more important."""

    scores: Mapping[Axis, Tensor]
    """HIDDEN (D,) over the whole model; LAYERS (L,); HEADS (L, H); MLP (L, F); EXPERTS (L, E);
    EXPERT_MLP (L, E, I); SHARED_MLP (L, S); HEAD_DIM (L, d). Rows of layers that lack an axis are zeros."""
    kv_heads: int
    """K, the teacher's."""
    method: str
    """How the scores were made, in words for the report."""
    fingerprint: str
    """Of teacher, calibration set and method together."""
    expert_groups: int = 1
    """Groups that the experts are routed in; each keeps an equal share of its experts."""
    basis: Basis | None = None
    """Directions that hidden is turned to and cut along; None to keep the best coordinates."""
    blocks: Tensor | None = None
    """(L, L) float32: [n − 1, i] is what it costs to be without the n layers from i on; +inf where they would
    end beyond the last, or nothing would be left. None to drop single layers by their scores."""

    @cached_property
    def orders(self) -> dict[Axis, Tensor]:
        """Best first along the last dimension.

        HIDDEN (D,); KV_HEADS (L, K), a group scored by the sum over its heads; HEADS (L, K, G) within
        each group; EXPERTS (L, groups, E / groups) within each group; all else as the scores.
        """
        scores = dict(self.scores)
        if Axis.HEADS in scores:
            scores[Axis.HEADS] = scores[Axis.HEADS].unflatten(-1, (self.kv_heads, -1))
            scores[Axis.KV_HEADS] = scores[Axis.HEADS].sum(-1)
        if Axis.EXPERTS in scores:
            scores[Axis.EXPERTS] = scores[Axis.EXPERTS].unflatten(-1, (self.expert_groups, -1))
        return {axis: descending(of) for axis, of in scores.items()}

    def order(self, axis: Axis, layer: int | None, within: int | None = None) -> Tensor:
        """The units of an axis, best first.

        Args:
            axis: any but LAYERS.
            layer: which one; HIDDEN is the same in all.
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
        """Write scores and orders; the file appears whole or not at all."""
        tensors = {axis.value: scores.contiguous() for axis, scores in self.scores.items()}
        tensors |= {f"order.{axis.value}": order.contiguous() for axis, order in self.orders.items()}
        about = {
            "kv_heads": self.kv_heads,
            "method": self.method,
            "fingerprint": self.fingerprint,
            "expert_groups": self.expert_groups,
        }
        if self.basis is not None:
            tensors |= {"basis.rotation": self.basis.rotation, "basis.energy": self.basis.energy}
        if self.blocks is not None:
            tensors["layers.blocks"] = self.blocks.contiguous()
        new = path.with_suffix(".new")
        save_file(tensors, new, metadata={"slimsearch": json.dumps(about)})
        os.replace(new, path)

    @classmethod
    def load(cls, path: Path, fingerprint: str | None) -> Ranking | None:
        """Read a ranking; None if there is none, or it is torn, or belongs to something else.

        Args:
            path: of the file.
            fingerprint: that it has to have; None for whichever is there.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
                if "fingerprint" not in about or fingerprint not in (None, about["fingerprint"]):
                    return None
                names = [name for name in file.keys() if "." not in name]  # noqa: SIM118
                scores = {Axis(name): file.get_tensor(name) for name in names}
                turned = "basis.rotation" in file.keys()  # noqa: SIM118
                basis = Basis(*map(file.get_tensor, ("basis.rotation", "basis.energy"))) if turned else None
                apart = "layers.blocks" in file.keys()  # noqa: SIM118
                blocks = file.get_tensor("layers.blocks") if apart else None
        except (OSError, SafetensorError):
            return None
        return cls(scores, **about, basis=basis, blocks=blocks)

    def shown(self) -> dict[str, Profile]:
        """How the scores of every axis but the layers fall off, as the report shows it.

        Of a turned basis, hidden are its directions in their order, with their energy.
        """
        shown = {axis.value: profile_of(of) for axis, of in self.scores.items() if axis is not Axis.LAYERS}
        if self.basis is not None:
            shown[Axis.HIDDEN.value] = profile_of(self.basis.energy.clamp_min(0).sqrt(), in_order=True)
        return shown


def kept_layers(scores: Tensor, layers: int, kinds: Sequence[int], blocks: Tensor | None = None) -> list[int]:
    """The layers of a student, in the teacher's order.

    All but the cheapest block, if blocks are scored and there is one that leaves every kind its share;
    otherwise the most important ones of each kind.

    Args:
        scores: (L,) importance of each layer.
        layers: how many are kept, at least one.
        kinds: (L,) the kind of each layer.
        blocks: (L, L) what it costs to be without n layers in a row, as in ``Ranking``.
    """
    room = layers_of_each_kind(kinds, layers)
    if blocks is not None and (start := _cheapest(blocks, layers, kinds, room)) is not None:
        stop = start + len(kinds) - layers
        return [layer for layer in range(len(kinds)) if not start <= layer < stop]
    kept = []
    for layer in descending(scores).tolist():
        if room[kinds[layer]]:
            room[kinds[layer]] -= 1
            kept.append(layer)
    return sorted(kept)


def _cheapest(blocks: Tensor, layers: int, kinds: Sequence[int], room: Mapping[int, int]) -> int | None:
    """Where the cheapest block starts that leaves every kind its share; of equal ones the last."""
    length = len(kinds) - layers
    if not length:
        return None
    gone = Counter(kinds) - Counter(room)
    starts = [start for start in range(layers + 1) if Counter(kinds[start : start + length]) == gone]
    costs = blocks[length - 1].tolist()
    return min(starts, key=lambda start: (costs[start], -start), default=None)
