"""What a candidate is: the size of every axis."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Axis(StrEnum):
    """The directions in which a decoder can be made smaller."""

    HIDDEN = "hidden"
    MLP = "mlp"
    HEADS = "heads"
    KV_HEADS = "kv_heads"
    LAYERS = "layers"


@dataclass(frozen=True, order=True)
class Architecture:
    """The size of every axis of a decoder.

    Which layers, neurons, heads and dimensions are kept follows from the ranking, so that two
    candidates of the same sizes are the same candidate.
    """

    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    layers: int

    def __getitem__(self, axis: Axis) -> int:
        size: int = getattr(self, axis.value)
        return size

    @property
    def label(self) -> str:
        """A short name, fit for a file: ``h96-m256-q6-kv2-l7``."""
        return f"h{self.hidden}-m{self.mlp}-q{self.heads}-kv{self.kv_heads}-l{self.layers}"

    def sizes(self) -> dict[str, int]:
        """Axis name to size."""
        sizes: dict[str, Any] = asdict(self)
        return sizes
