"""What matters most in a teacher: scores of every unit of every axis, the orders that follow, and the file.

Legend: L layers, D hidden, F mlp, H heads, K kv heads, G = H / K heads of a group, E experts,
I neurons of an expert, S neurons of the shared expert, d entries of a head.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from space.axes.architecture import Axis
from space.cutting.basis import Basis
from space.cutting.profile import Profile, profile_of


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
