"""What matters most in a teacher: scores of every unit of every axis, the orders that follow, and the file.

Legend: L layers, D hidden, F mlp, H heads, K kv heads, G = H / K heads of a group.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from space.architecture import Axis


def descending(scores: Tensor) -> Tensor:
    """The order from the highest score to the lowest along the last dimension; ties keep their order."""
    return scores.argsort(dim=-1, descending=True, stable=True)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Importance of every unit of a teacher; higher is more important."""

    hidden: Tensor
    """(D,) summed over all norms of the model."""
    mlp: Tensor
    """(L, F)."""
    heads: Tensor
    """(L, H)."""
    layers: Tensor
    """(L,)."""
    kv_heads: int
    """K, the teacher's."""
    method: str
    """How the scores were made, in words for the report."""
    fingerprint: str
    """Of teacher, calibration set and method together."""

    @cached_property
    def groups(self) -> Tensor:
        """(L, K) a KV group's score: the sum over its query heads."""
        scores: Tensor = self.heads.unflatten(-1, (self.kv_heads, -1)).sum(-1)
        return scores

    @cached_property
    def hidden_order(self) -> Tensor:
        """(D,) dimensions, best first."""
        return descending(self.hidden)

    @cached_property
    def mlp_order(self) -> Tensor:
        """(L, F) neurons, best first."""
        return descending(self.mlp)

    @cached_property
    def group_order(self) -> Tensor:
        """(L, K) KV groups, best first."""
        return descending(self.groups)

    @cached_property
    def head_order(self) -> Tensor:
        """(L, K, G) query heads: groups best first, and within each group its heads best first."""
        grouped = self.heads.unflatten(-1, (self.kv_heads, -1))
        size = grouped.shape[-1]
        numbers = descending(grouped) + torch.arange(self.kv_heads)[:, None] * size
        order: Tensor = numbers.gather(1, self.group_order[..., None].expand_as(numbers))
        return order

    def kept_layers(self, layers: int) -> list[int]:
        """The most important layers, in the teacher's order."""
        return sorted(descending(self.layers)[:layers].tolist())

    def save(self, path: Path) -> None:
        """Write scores and orders; the file appears whole or not at all."""
        scores = {"hidden": self.hidden, "mlp": self.mlp, "heads": self.heads, "layers": self.layers}
        orders = {
            "order.hidden": self.hidden_order,
            "order.mlp": self.mlp_order,
            "order.kv_heads": self.group_order,
            "order.heads": self.head_order,
            "order.layers": descending(self.layers),
        }
        about = {"kv_heads": self.kv_heads, "method": self.method, "fingerprint": self.fingerprint}
        new = path.with_suffix(".new")
        save_file(
            {name: tensor.contiguous() for name, tensor in (scores | orders).items()},
            new,
            metadata={"slimsearch": json.dumps(about)},
        )
        os.replace(new, path)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> Ranking | None:
        """Read a ranking; None if there is none, or it is torn, or belongs to something else."""
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("slimsearch", "{}"))
                if about.get("fingerprint") != fingerprint:
                    return None
                scores = {name: file.get_tensor(name) for name in ("hidden", "mlp", "heads", "layers")}
        except (OSError, SafetensorError):
            return None
        return cls(**scores, **about)

    def shown(self) -> dict[str, list[float]]:
        """Scores as the report shows them: each axis sorted, layers in their order."""
        rows = {"hidden": self.hidden.sort(descending=True).values.tolist()}
        for axis, scores in ((Axis.MLP, self.mlp), (Axis.HEADS, self.heads)):
            for layer, row in enumerate(scores):
                rows[f"{axis} layer {layer}"] = row.sort(descending=True).values.tolist()
        return rows | {"layers": self.layers.tolist()}
