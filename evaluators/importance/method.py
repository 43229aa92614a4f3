"""How importance is measured: everything that a ranking depends on beside teacher and text.

The methods are Minitron's (arXiv 2407.14679, section 2.2), with those that it is compared to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from space.cutting.basis import BasisName


class Width(StrEnum):
    """What the units inside the layers, and hidden, are scored by."""

    ACTIVATIONS = "activations"
    """How large they are on the calibration set."""
    TAYLOR = "taylor"
    """How much the loss would change without them, to first order: one backward pass."""
    MAGNITUDE = "magnitude"
    """How large their weights are; no data."""
    RANDOM = "random"


class Aggregate(StrEnum):
    """How absolute activations become one number along the sequence, and along the batch."""

    MEAN = "mean"
    """(1/n) Σ|x|."""
    L2 = "l2"
    """√Σx²."""
    VAR = "var"
    """(1/n) Σ(x − x̄)²."""


class Depth(StrEnum):
    """What layers are scored by."""

    INFLUENCE = "influence"
    """1 − cosine between a layer's input and its output."""
    PERPLEXITY = "perplexity"
    """Loss without the layer."""
    DIVERGENCE = "divergence"
    """KL divergence of the logits without the layer from the teacher's."""
    BLOCK_INFLUENCE = "block-influence"
    """Of every number of layers in a row: 1 − cosine between the two ends."""
    BLOCK_PERPLEXITY = "block-perplexity"
    """Of every number of layers in a row: loss without them."""
    BENCHMARK = "benchmark"
    """Score of a named benchmark without the layer."""
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Method:
    """Everything that can be chosen; the defaults are Minitron's and need one forward pass."""

    width: Width = Width.ACTIVATIONS
    batch: Aggregate = Aggregate.L2
    sequence: Aggregate = Aggregate.MEAN
    depth: Depth = Depth.INFLUENCE
    greedy: bool = False
    """Layers are taken out one after the other, those left scored anew each time."""
    rounds: int = 1
    """Of scoring and pruning; one is single shot."""
    basis: BasisName = BasisName.COORDINATE
    benchmark: str = ""
    """Named, for ``Depth.BENCHMARK``."""
    seed: int = 0
    """Of what is random."""

    @property
    def words(self) -> str:
        """In words, for the report and for fingerprints."""
        width = f"{self.width}"
        if self.width is Width.ACTIVATIONS:
            width = f"activations, batch = {self.batch}, sequence = {self.sequence}"
            width += "; routed experts, and entries of heads, by the L2 norm over their tokens"
        elif self.width is Width.RANDOM:
            width = f"random numbers of seed {self.seed}"
        elif self.width is Width.TAYLOR:
            width = "taylor, the mean over blocks of (Σ gradient × weight)² of each unit"
        elif self.width is Width.MAGNITUDE:
            width = "magnitude, the L2 norm of each unit's weights"
        layers = f"{self.depth} of {self.benchmark}" if self.benchmark else f"{self.depth}"
        if self.depth is Depth.RANDOM:
            layers = f"random numbers of seed {self.seed}"
        layers = f"{layers}, greedily" if self.greedy else layers
        parts = [width, f"layers by {layers}"]
        if self.rounds > 1:
            parts.append(f"{self.rounds} rounds")
        if self.basis is not BasisName.COORDINATE:
            parts.append(f"hidden along the {self.basis} basis, with the norm gain")
        return "; ".join(parts)
