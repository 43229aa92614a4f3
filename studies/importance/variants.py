"""What the studies of importance compare: rankings and repairs, each by a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from evaluators.importance.iterative import rank_in_rounds
from evaluators.importance.method import Aggregate, Depth, Method, Width
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair, producing_tensors
from space.verification.verification import verified_axis_map
from studies.bench.bench import Bench
from studies.bench.setting import Setting

Sizes = Callable[[Setting], Mapping[Axis, int]]


@dataclass(frozen=True)
class Variant:
    """One way to make a student."""

    study: str
    name: str
    method: Method
    sizes: Sizes
    residual: bool = False
    least_squares: bool = False
    norm_scale: bool = False
    seeded: bool = False
    """The ranking itself is random and depends on the seed."""


def widths(setting: Setting) -> Mapping[Axis, int]:
    """Hidden and MLP are cut."""
    return setting.widths


def all_widths(setting: Setting) -> Mapping[Axis, int]:
    """Hidden, MLP and heads are cut."""
    return setting.others["heads"]


def heads(setting: Setting) -> Mapping[Axis, int]:
    """Of each KV group one of two heads is cut."""
    return {axis: size for axis, size in all_widths(setting).items() if axis in (Axis.HEADS, Axis.KV_HEADS)}


def depth(setting: Setting) -> Mapping[Axis, int]:
    """Layers are cut."""
    return {Axis.LAYERS: setting.layers}


def everything(setting: Setting) -> Mapping[Axis, int]:
    """All widths and one layer are cut."""
    return {**all_widths(setting), Axis.LAYERS: setting.layers + 1}


AGGREGATIONS = [
    Variant("aggregation", f"{batch}, {sequence}", Method(batch=batch, sequence=sequence), all_widths)
    for batch in Aggregate
    for sequence in Aggregate
]
WIDTHS = [
    Variant("width", width.value, Method(width=width), all_widths, seeded=width is Width.RANDOM)
    for width in Width
]
ROUNDS = [Variant("rounds", f"T = {rounds}", Method(rounds=rounds), everything) for rounds in (1, 2, 4)]
DEPTHS = [
    Variant("depth", name, method, depth, seeded=method.depth is Depth.RANDOM)
    for name, method in {
        "PPL": Method(depth=Depth.PERPLEXITY),
        "PPL, greedy": Method(depth=Depth.PERPLEXITY, greedy=True),
        "KL of logits": Method(depth=Depth.DIVERGENCE),
        "block influence": Method(depth=Depth.INFLUENCE),
        "contiguous, influence": Method(depth=Depth.BLOCK_INFLUENCE),
        "contiguous, PPL": Method(depth=Depth.BLOCK_PERPLEXITY),
        "random": Method(depth=Depth.RANDOM),
    }.items()
]
RESIDUALS = [
    Variant("residual", "off", Method(), heads),
    Variant("residual", "on", Method(), heads, residual=True),
]
REPAIRS = [
    Variant("repair", "none", Method(), all_widths),
    Variant("repair", "least squares", Method(), all_widths, least_squares=True),
    Variant("repair", "norm scale", Method(), all_widths, norm_scale=True),
    Variant("repair", "both", Method(), all_widths, least_squares=True, norm_scale=True),
]
VARIANTS = [*DEPTHS, *WIDTHS, *AGGREGATIONS, *ROUNDS, *RESIDUALS, *REPAIRS]
#: What the others of a study are compared to.
REFERENCES = {
    "aggregation": "l2, mean",
    "width": "activations",
    "rounds": "T = 1",
    "depth": "block influence",
    "residual": "off",
    "repair": "none",
}


class Students:
    """Makes the students of one teacher; each ranking is made once."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.axis_map: AxisMap = verified_axis_map(bench.teacher.model.config)
        self.rankings: dict[tuple[Method, Architecture | None], Ranking] = {}

    def student(self, variant: Variant, seed: int) -> PreTrainedModel:
        """Straight after pruning.

        Args:
            variant: how it is made.
            seed: of a ranking that is random.
        """
        axis_map, model = self.axis_map, self.bench.teacher.model
        whole = {axis: axis_map.teacher[axis] for axis in axis_map.free}
        architecture = axis_map.complete({**whole, **variant.sizes(self.bench.setting)})
        ranking = self._ranking(variant, architecture, seed)
        canonical = sort_by_importance(saved_tensors(model, axis_map), axis_map, ranking)
        moments = None
        if variant.least_squares or variant.norm_scale:
            moments = gather_moments(model, axis_map, self.bench.corpus.calibration, "study")
            moments = moments.sorted_by(axis_map, ranking)
        repair = Repair(
            producing_tensors(axis_map) if variant.residual else {},
            variant.least_squares,
            variant.norm_scale,
            moments,
        )
        return extract(canonical, axis_map, ranking, architecture, repair=repair)

    def _ranking(self, variant: Variant, architecture: Architecture, seed: int) -> Ranking:
        method = variant.method
        if variant.seeded:
            method = Method(width=method.width, depth=method.depth, seed=seed)
        key = method, architecture if method.rounds > 1 else None
        if key not in self.rankings:
            calibration, model = self.bench.corpus.calibration, self.bench.teacher.model
            with torch.random.fork_rng(devices=[]):
                self.rankings[key] = (
                    rank_in_rounds(model, self.axis_map, calibration, "study", architecture, method=method)
                    if method.rounds > 1
                    else rank(model, self.axis_map, calibration, "study", method=method)
                )
        return self.rankings[key]
