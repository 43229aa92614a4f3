"""How importance is measured: everything that a ranking depends on besides the teacher and the text.

The methods are Minitron's (arXiv 2407.14679, section 2.2) and those that it is compared to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from space.cutting.basis import BasisName


class Width(StrEnum):
    """How the units of every axis but layers are scored."""

    ACTIVATIONS = "activations"
    """The size of their activations on the calibration set."""
    TAYLOR = "taylor"
    """The first-order change of the loss without them: one backward pass."""
    MAGNITUDE = "magnitude"
    """The L2 norm of their weights; needs no data."""
    RANDOM = "random"


class Aggregate(StrEnum):
    """How absolute activations are reduced along the sequence or along the batch."""

    MEAN = "mean"
    """(1/n) Σ|x|."""
    L2 = "l2"
    """√Σx²."""
    VAR = "var"
    """(1/n) Σ(x − x̄)²."""


class Depth(StrEnum):
    """How layers are scored."""

    INFLUENCE = "influence"
    """1 − cosine between a layer's input and its output."""
    PERPLEXITY = "perplexity"
    """Loss without the layer."""
    DIVERGENCE = "divergence"
    """KL divergence of the output without the layer from the teacher's."""
    BLOCK_INFLUENCE = "block-influence"
    """1 − cosine between the two ends of every block of consecutive layers."""
    BLOCK_PERPLEXITY = "block-perplexity"
    """Loss without every block of consecutive layers."""
    BENCHMARK = "benchmark"
    """What the models score on a named task without the layer."""
    BLOCK_BENCHMARK = "block-benchmark"
    """What they score without every block of consecutive layers."""
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Method:
    """All choices of the ranking; the defaults are Minitron's and need one forward pass."""

    width: Width = Width.ACTIVATIONS
    batch: Aggregate = Aggregate.L2
    sequence: Aggregate = Aggregate.MEAN
    depth: Depth = Depth.INFLUENCE
    greedy: bool = False
    """Remove layers one after the other, and score the remaining ones again each time."""
    rounds: int = 1
    """Rounds of scoring and pruning."""
    basis: BasisName = BasisName.COORDINATE
    benchmark: str = ""
    """The task, with what its scores depend on, if layers are scored by one."""
    seed: int = 0
    """Of random scores."""
    bfloat16: bool = False
    """Forward passes multiply matrices in bfloat16; scores are summed in float32 or float64 nonetheless."""

    @property
    def by_task(self) -> bool:
        """Whether layers are scored by a task."""
        return self.depth in (Depth.BENCHMARK, Depth.BLOCK_BENCHMARK)

    @property
    def in_blocks(self) -> bool:
        """Whether layers are scored in blocks of consecutive ones."""
        return self.depth in (Depth.BLOCK_INFLUENCE, Depth.BLOCK_PERPLEXITY, Depth.BLOCK_BENCHMARK)

    @property
    def words(self) -> str:
        """A description of the method, for the report and for fingerprints."""
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
        parts = [width, f"layers by {self.depth_words}"]
        if self.rounds > 1:
            parts.append(f"{self.rounds} rounds")
        if self.basis is not BasisName.COORDINATE:
            parts.append(f"hidden along the {self.basis} basis, with the norm gain")
        if self.bfloat16:
            parts.append("products in bfloat16")
        return "; ".join(parts)

    @property
    def depth_words(self) -> str:
        """How layers are scored, in words that differ wherever the scores do."""
        if self.depth is Depth.RANDOM:
            return f"random numbers of seed {self.seed}"
        layers = f"{self.depth} of {self.benchmark}" if self.benchmark else f"{self.depth}"
        return f"{layers}, greedily" if self.greedy else layers
