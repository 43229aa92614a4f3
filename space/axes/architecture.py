"""The axes of a decoder, and an architecture: one size for every axis."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Axis(StrEnum):
    """The dimensions along which a decoder can be pruned."""

    HIDDEN = "hidden"
    MLP = "mlp"
    HEADS = "heads"
    KV_HEADS = "kv_heads"
    LAYERS = "layers"
    EXPERTS = "experts"
    EXPERT_MLP = "expert_mlp"
    SHARED_MLP = "shared_mlp"
    HEAD_DIM = "head_dim"


_LETTERS = {
    Axis.HIDDEN: "h",
    Axis.MLP: "m",
    Axis.HEADS: "q",
    Axis.KV_HEADS: "kv",
    Axis.LAYERS: "l",
    Axis.EXPERTS: "e",
    Axis.EXPERT_MLP: "x",
    Axis.SHARED_MLP: "s",
    Axis.HEAD_DIM: "d",
}


@dataclass(frozen=True, order=True)
class Architecture:
    """The size of every axis of a decoder; 0 for an axis that its class does not have.

    The ranking determines which layers, neurons, heads and hidden dimensions are kept, so two candidates
    with the same sizes are the same candidate.
    """

    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    layers: int
    experts: int = 0
    expert_mlp: int = 0
    """Neurons of one routed expert."""
    shared_mlp: int = 0
    """Neurons of the shared expert, which processes every token."""
    head_dim: int = 0
    """Entries of a head; 0 where the position encoding does not allow cutting them."""

    def __getitem__(self, axis: Axis) -> int:
        size: int = getattr(self, axis.value)
        return size

    @property
    def label(self) -> str:
        """A short name, safe in file names, such as ``h96-m256-q6-kv2-l7``; absent axes are left out."""
        return "-".join(f"{letter}{self[axis]}" for axis, letter in _LETTERS.items() if self[axis])

    def sizes(self) -> dict[str, int]:
        """Return a mapping from axis name to size, for the axes that the class has."""
        return {name: size for name, size in asdict(self).items() if size}
