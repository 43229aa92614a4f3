"""The students and the masked teachers that the study of ideas compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from transformers import PreTrainedModel

from evaluators.importance.method import Method
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank
from space.axes.architecture import Axis
from space.axes.config_fields import with_sizes
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from space.verification.verification import verified_axis_map
from studies.bench.bench import Bench
from studies.ideas.merging import with_merged
from studies.ideas.regions import projected, region_bases
from studies.ideas.stream import ALIKE, GRADIENT, folded_teacher, norms_of, statistics_of
from studies.ideas.values import Entries, value_moments, with_values

DROPPED, MERGED, REFITTED = "dropped", "merged", "least squares"
COORDINATE, WEIGHTED, PRINCIPAL = map(str, (BasisName.COORDINATE, BasisName.WEIGHTED, BasisName.PRINCIPAL))


@dataclass(frozen=True)
class Variant:
    """A basis of hidden, with the norm gain, and what becomes of the neurons that are not kept."""

    basis: str
    neurons: str = DROPPED

    @property
    def name(self) -> str:
        """Of the run."""
        return f"{self.basis}: {self.neurons}"


#: Distilled, at the setting's widths.
STUDENTS = (
    Variant(WEIGHTED),
    Variant(GRADIENT),
    Variant(COORDINATE),
    Variant(COORDINATE, MERGED),
    Variant(COORDINATE, REFITTED),
    Variant(ALIKE),
    Variant(WEIGHTED, MERGED),
    Variant(WEIGHTED, REFITTED),
)
#: Numbers of regions of depth; 0 is one for every norm.
REGIONS = (1, 2, 3, 0)
SHARES = (Fraction(3, 4), Fraction(1, 2))
Measure = Callable[[], float]


class Students:
    """Makes the students of one teacher, head and embedding apart; what they are made of is gathered once."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.model = bench, bench.teacher.model
        apart = with_sizes(self.model.config, {"tie_word_embeddings": False})
        self.axis_map = verified_axis_map(apart, BasisName.PRINCIPAL)
        calibration = bench.corpus.calibration
        method = Method(basis=BasisName.WEIGHTED)
        self.ranking: Ranking = rank(self.model, self.axis_map, calibration, "study", method=method)
        moments = gather_moments(self.model, self.axis_map, calibration, "study")
        # Without the stream's: neurons alone are mended, and in every basis alike.
        self.moments = replace(moments, stream={}).sorted_by(self.axis_map, self.ranking)
        self.folded = folded_teacher(self.model, self.axis_map)
        self.statistics = statistics_of(self.folded, self.axis_map, calibration)
        self.values = value_moments(self.model, calibration)
        self.norms = [norm.name for norm in norms_of(self.axis_map)]

    def student(self, variant: Variant, sizes: Mapping[Axis, int] | None = None) -> PreTrainedModel:
        """Straight after pruning.

        Args:
            variant: how it is made.
            sizes: of axes that are cut; the setting's widths if None.
        """
        axis_map, ranking = self.axis_map, self._ranking(variant.basis)
        whole = {axis: axis_map.teacher[axis] for axis in axis_map.free}
        architecture = axis_map.complete({**whole, **(sizes or self.bench.setting.widths)})
        canonical = sort_by_importance(saved_tensors(self.model, axis_map), axis_map, ranking)
        if variant.neurons == MERGED:
            canonical = with_merged(canonical, axis_map, self.moments, architecture)
        refit = variant.neurons == REFITTED
        repair = Repair(least_squares=True, moments=self.moments) if refit else Repair()
        return extract(canonical, axis_map, ranking, architecture, repair=repair)

    def _ranking(self, basis: str) -> Ranking:
        if basis == WEIGHTED:
            return self.ranking
        turned = None if basis == COORDINATE else self.statistics.basis(basis, self.norms)
        return replace(self.ranking, basis=turned)

    def measures(self) -> Iterator[tuple[str, str, Measure]]:
        """Idea, name and loss of all that is measured before distillation alone."""
        for number in REGIONS:
            for basis in (PRINCIPAL, WEIGHTED, GRADIENT):
                name = f"{basis}: {f'{number} of depth' if number else 'every norm'}"
                yield "regions", name, partial(self._projected, basis, number or len(self.norms))
        size = self.axis_map.head_dim
        for share in SHARES:
            for entries in Entries:
                kept = int(size * share)
                name = f"{entries}: {kept} of {size}"
                yield "values", name, partial(self._masked, entries, kept)
        alone = {Axis.MLP: self.bench.setting.widths[Axis.MLP]}
        for neurons in (DROPPED, MERGED, REFITTED):
            variant = Variant(COORDINATE, neurons)
            yield "neurons alone", neurons, partial(self._cut, variant, alone)

    def _cut(self, variant: Variant, sizes: Mapping[Axis, int]) -> float:
        return self.bench.loss(self.student(variant, sizes))

    def _projected(self, basis: str, number: int) -> float:
        bases = region_bases(self.statistics, basis, number)
        with projected(self.folded, bases, self.bench.setting.widths[Axis.HIDDEN]):
            return self.bench.loss(self.folded)

    def _masked(self, entries: Entries, kept: int) -> float:
        return self.bench.loss(with_values(self.model, self.values, entries, kept))
