"""The students that the study of the bases compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from evaluators.importance.method import Method
from evaluators.importance.moments import gather_moments
from evaluators.importance.rank import rank
from space.axes.architecture import Axis
from space.cutting.basis import Basis, BasisName, TurnedNorm
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.moments import Moments
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from space.verification.verification import verified_axis_map
from studies.bench.bench import Bench
from studies.bench.setting import Setting

MAIN = "main"
LONGEST = 160
#: Where all are compared.
_AT_ONCE = 80
#: Of the rule's peak rate.
RULE = "rule"
RATES = {RULE: 1.0, "quarter": 0.25}


@dataclass(frozen=True)
class Variant:
    """A basis with or without the norm gain, a size and a learning rate."""

    basis: str
    gain: bool
    size: str = MAIN
    rate: str = RULE
    repaired: bool = False
    """By least squares."""

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Numbers of steps at which its size is compared, the last of which is the mark."""
        return (40, 80, 160) if (self.size, self.rate) == (MAIN, RULE) else (20, 40, 80)

    @property
    def steps(self) -> tuple[int, ...]:
        """Of the distillations: coordinates set the mark, the gain is compared at one length."""
        if (self.basis, self.gain) == ("coordinate", False):
            return tuple(sorted({_AT_ONCE, self.lengths[-1]}))
        return self.lengths if (self.basis, self.gain) == ("weighted", True) else (_AT_ONCE,)


_BOTH = (("coordinate", False), ("weighted", True))
VARIANTS = (
    *(Variant(basis, gain) for basis, gain in _BOTH),
    *(Variant(basis, gain, size) for size in ("mild", "deep") for basis, gain in _BOTH),
    *(Variant(basis, gain, repaired=True) for basis, gain in _BOTH),
    *(Variant(basis, gain, rate="quarter") for basis, gain in _BOTH),
    Variant("principal", True),
    Variant("coordinate", True),
    Variant("principal", False),
    Variant("weighted", False),
)


def sizes_of(setting: Setting) -> Iterator[tuple[str, Mapping[Axis, int]]]:
    """The students' widths by the name of their size."""
    yield MAIN, setting.widths
    yield from setting.others.items()


class Students:
    """Makes the students of one teacher."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.model = bench, bench.teacher.model
        self.axis_map = verified_axis_map(self.model.config, BasisName.PRINCIPAL)
        self.sizes = dict(sizes_of(bench.setting))
        self.rankings: dict[str, Ranking] = {}
        self.moments: Moments | None = None

    def student(self, variant: Variant) -> PreTrainedModel:
        """Straight after pruning."""
        axis_map, ranking = self.axis_map, self._ranking(variant)
        whole = {axis: axis_map.teacher[axis] for axis in axis_map.free}
        architecture = axis_map.complete({**whole, **self.sizes[variant.size]})
        canonical = sort_by_importance(saved_tensors(self.model, axis_map), axis_map, ranking)
        student = extract(canonical, axis_map, ranking, architecture, repair=self._repair(variant, ranking))
        if ranking.basis is not None and not variant.gain:
            self._without_gain(student, ranking.basis, architecture.hidden)
        return student

    def _repair(self, variant: Variant, ranking: Ranking) -> Repair:
        if not variant.repaired:
            return Repair()
        if self.moments is None:
            self.moments = gather_moments(self.model, self.axis_map, self.bench.corpus.calibration, "study")
        return Repair(least_squares=True, moments=self.moments.sorted_by(self.axis_map, ranking))

    def _ranking(self, variant: Variant) -> Ranking:
        """Coordinates with the gain are a turned basis whose directions are the coordinates, best first."""
        name = "principal" if variant.basis == "coordinate" and variant.gain else variant.basis
        if name not in self.rankings:
            method = Method(basis=BasisName(name))
            self.rankings[name] = rank(
                self.model, self.axis_map, self.bench.corpus.calibration, "study", method=method
            )
        ranking = self.rankings[name]
        if name == variant.basis:
            return ranking
        assert ranking.basis is not None
        old = ranking.basis
        covariance = (old.rotation * old.energy) @ old.rotation.T
        order = ranking.orders[Axis.HIDDEN]
        rotation, energy = torch.eye(len(order))[:, order], covariance.diagonal()[order]
        assert self.axis_map.stream is not None
        offset = self.axis_map.stream.offset
        gains = {name: self.model.get_parameter(name).detach()[order] + offset for name in old.norms}
        norms = {name: TurnedNorm(gain, energy) for name, gain in gains.items()}
        return replace(ranking, basis=Basis(rotation, energy, norms=norms))

    def _without_gain(self, student: PreTrainedModel, basis: Basis, hidden: int) -> None:
        assert self.axis_map.stream is not None
        gain, offset = basis.gain(hidden), self.axis_map.stream.offset
        for parameter in student.parameters():
            if parameter.ndim == 1 and bool((parameter + offset == gain).all()):
                torch.nn.init.constant_(parameter, 1 - offset)
