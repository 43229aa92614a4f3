"""Where the parameters and the time of a model lie, by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from evaluators.metrics.latency_parts import Shares, latency_shares
from search.stages.workbench import Workbench
from space.counting.parts import Part, Parts, parts_of


@dataclass(frozen=True)
class LatencyBreakdown:
    """Measured times, and how they divide among the parts by shares that were timed with hooks."""

    prefill_ms: float
    decode_ms_per_token: float
    answer: int
    """Tokens of the answer, for the latency of prompt and answer together."""
    prefill: dict[str, float]
    """Milliseconds of each part; their sum is ``prefill_ms``."""
    decode: dict[str, float]
    """Milliseconds for each token of each part; their sum is ``decode_ms_per_token``."""


@dataclass(frozen=True)
class Breakdown:
    """Of one model."""

    parameters: dict[str, int]
    """By part, tied ones once; parts without any are left out."""
    latency: LatencyBreakdown


def breakdown_of(bench: Workbench, model: PreTrainedModel, kept: Sequence[int]) -> Breakdown:
    """Take a model apart.

    Args:
        bench: of the run.
        model: the teacher, or a student as transformers loads it.
        kept: the teacher's layers that it has, ascending.
    """
    parts = parts_of(model, bench.axis_map, kept)
    latency = bench.latency(model)
    shares = latency_shares(model, {name: part.value for name, part in parts.modules.items()}, bench.workload)
    return Breakdown(
        _counted(model, parts),
        LatencyBreakdown(
            latency.prefill_ms,
            latency.decode_ms_per_token,
            latency.answer,
            _scaled(shares.prefill, latency.prefill_ms),
            _scaled(shares.decode, latency.decode_ms_per_token),
        ),
    )


def _counted(model: PreTrainedModel, parts: Parts) -> dict[str, int]:
    counts: Counter[Part] = Counter()
    for name, parameter in model.named_parameters():
        counts[parts.parameters[name]] += parameter.numel()
    return {part.value: counts[part] for part in Part if counts[part]}


def _scaled(shares: Shares, whole: float) -> dict[str, float]:
    return {part: share * whole for part, share in shares.items()}
