"""A synthetic search problem: every objective is a formula, with no model and no training.

To test whether a search finds the best architectures, the best have to be known. Here the loss of an
architecture after any number of tokens is a smooth function of its sizes, so enumerating a space gives its
true Pareto front. Two settings make the problem as hard as real ones: noise, and low rungs that mislead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from space.axes.architecture import Architecture, Axis
from space.axes.polynomial import Polynomial

Reals = NDArray[np.float64]
Table = NDArray[np.int64]
_AXES = tuple(Axis)

#: Final loss at the teacher's sizes, in nats per token, and about how far above it the loss starts.
_LOWEST, _GAP = 2.0, 2.0
#: Final cost of halving an axis, in nats per token. The ratios of hidden, MLP, heads and layers are those of
#: students of the embedded teacher.
_COST: Mapping[Axis, float] = {
    Axis.HIDDEN: 0.35,
    Axis.MLP: 0.1,
    Axis.HEADS: 0.05,
    Axis.KV_HEADS: 0.03,
    Axis.LAYERS: 0.25,
    Axis.EXPERTS: 0.1,
    Axis.EXPERT_MLP: 0.1,
    Axis.SHARED_MLP: 0.03,
    Axis.HEAD_DIM: 0.1,
}
#: How strongly keeping more of an axis slows learning down at full bias; layers have the strongest effect.
_SLOWNESS, _SLOWNESS_OF_LAYERS = 3.0, 4.0
#: The teacher's latency, the share that no pruning saves, and the shares of a layer's parts in the rest.
_TEACHER_MS, _FIXED = 100.0, 0.1
_OF_CALLS, _OF_HIDDEN, _OF_HEADS, _OF_KV_HEADS, _OF_NEURONS = 0.4, 0.2, 0.15, 0.05, 0.2
#: The teacher's KV cache and attention FLOPs, as shares of its weights and their FLOPs; bytes per weight.
_CACHE, _CONTEXT, _WEIGHT_BYTES = 0.1, 0.1, 4


@dataclass(frozen=True, kw_only=True)
class SyntheticProblem:
    """The objectives of every architecture within a teacher, all minimised.

    With x the kept share of an axis, the loss of an architecture converges to

        floor = 2 + Σ cost (1/x − 1)

    nats per token, and starts above it by

        gap = log(1 + exp(2 + Σ cost (1/x − 1) (1 − bias · slowness)))

    After t tokens its loss is floor + gap · (1 + t / pace)^−½. Without bias the gap grows with the floor, so
    all rungs agree with the final order. With bias, architectures that keep more learn more slowly, and low
    rungs prefer those that end worse: at a bias near 0.5 as much as with the embedded teacher.
    """

    teacher: Architecture
    count: Polynomial
    """Parameters of an architecture."""
    pace_tokens: float
    """Half of the gap is closed after three times this many tokens."""
    noise: float = 0.0
    """Standard deviation of a measured loss, in nats per token."""
    bias: float = 0.0
    """How far low rungs mislead, from 0 to 1."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        assert 0 <= self.bias <= 1, f"bias lies between 0 and 1, not at {self.bias}"
        assert self.noise >= 0, f"noise is a standard deviation, and {self.noise} is none"
        assert self.pace_tokens > 0, f"a pace of {self.pace_tokens} tokens is none"

    def floors(self, table: Table) -> Reals:
        """Return (n,) the limits of the losses, in nats per token.

        Args:
            table: (n, axes) sizes, with the axes in the order of ``Axis``.
        """
        floors: Reals = _LOWEST + self._excess(table).sum(1)
        return floors

    def gaps(self, table: Table) -> Reals:
        """Return (n,) how far the losses right after pruning lie above their floors."""
        slowness = [_SLOWNESS_OF_LAYERS if axis is Axis.LAYERS else _SLOWNESS for axis in _AXES]
        excess = self._excess(table) @ (1 - self.bias * np.array(slowness))
        gaps: Reals = np.logaddexp(0, _GAP + excess)
        return gaps

    def losses(self, table: Table, tokens: float) -> Reals:
        """Return (n,) the losses after a number of tokens of distillation, without noise."""
        remaining = (1 + tokens / self.pace_tokens) ** -0.5
        losses: Reals = self.floors(table) + self.gaps(table) * remaining
        return losses

    def costs(self, table: Table) -> dict[str, Reals]:
        """Return (n,) each objective that training leaves alone: ms, parameters, bytes, FLOPs per token."""
        kept = dict(zip(_AXES, self._shares(table).T, strict=True))
        parameters = self.count.at(dict(zip(_AXES, table.T, strict=True))).astype(np.float64)
        layers, kv, teacher = kept[Axis.LAYERS], kept[Axis.KV_HEADS], self.count.of(self.teacher)
        cached = _CACHE * teacher * layers * kv * kept[Axis.HEAD_DIM]
        return {
            "latency": _TEACHER_MS * (_FIXED + (1 - _FIXED) * layers * _layer_time(kept)),
            "parameters": parameters,
            "memory": _WEIGHT_BYTES * (parameters + cached),
            "flops": 2 * (parameters + _CONTEXT * teacher * layers * kept[Axis.HEADS]),
        }

    def objectives(self, table: Table, tokens: float, names: tuple[str, ...]) -> Reals:
        """Return (n, objectives) after a number of tokens, without noise, in the order of the names."""
        found = {**self.costs(table), "loss": self.losses(table, tokens)}
        return np.stack([found[name] for name in names], axis=1)

    def noise_of(self, architecture: Architecture, rung: int) -> float:
        """Return the noise on the loss measured at a rung; repeated measurements give the same."""
        sizes = [architecture[axis] for axis in _AXES]
        return float(self.noise * np.random.default_rng((self.seed, rung, *sizes)).standard_normal())

    def _shares(self, table: Table) -> Reals:
        """Return (n, axes) the kept shares of the teacher's sizes; 1 for an axis that its class lacks."""
        sizes = np.array([self.teacher[axis] for axis in _AXES])
        shares: Reals = np.where(sizes > 0, table, 1) / np.maximum(sizes, 1)
        return shares

    def _excess(self, table: Table) -> Reals:
        """Return (n, axes) the final cost of each axis in nats per token."""
        excess: Reals = np.array([_COST[axis] for axis in _AXES]) * (1 / self._shares(table) - 1)
        return excess


def _layer_time(kept: Mapping[Axis, Reals]) -> Reals:
    """Return (n,) the latency of one layer, as a share of the teacher's."""
    neurons = kept[Axis.MLP] * kept[Axis.EXPERT_MLP] * kept[Axis.SHARED_MLP]
    return (
        _OF_CALLS
        + _OF_HIDDEN * kept[Axis.HIDDEN]
        + _OF_HEADS * kept[Axis.HEADS] * kept[Axis.HEAD_DIM]
        + _OF_KV_HEADS * kept[Axis.KV_HEADS] * kept[Axis.HEAD_DIM]
        + _OF_NEURONS * kept[Axis.HIDDEN] * neurons
    )
