"""A teacher, its text, and its students straight after cutting, repaired in several ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from evaluators.corpus.corpus import CorpusRequest, read_corpus
from evaluators.huggingface.final_states import final_states
from evaluators.importance.moments import MomentsListener
from evaluators.importance.rank import batches, rank
from evaluators.metrics.loss import validation_loss
from evaluators.teacher import load_teacher
from space.axes.architecture import Architecture, Axis
from space.axes.axis_map import AxisMap
from space.cutting.extraction import extract, saved_tensors, sort_by_importance
from space.cutting.moments import InputMoment, Moments
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from space.verification.verification import verified_axis_map
from studies.bench.setting import SETTINGS

#: Tokens of a block, so that the fewest tokens are one block.
BLOCK = 256
_VALIDATION_TOKENS = 8192
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Way:
    """How a student is repaired."""

    ridge: float | None
    """None: the one that is chosen."""
    precision: str = "float64"
    """Of the moments as they are kept; ridges are solved in float64."""

    @property
    def name(self) -> str:
        """For a table."""
        return "chosen" if self.ridge is None else f"{self.ridge:g}"


class Subject:
    """A teacher with its text, ranked.

    Args:
        teacher: the name of a setting, or the directory of another teacher.
        data: the text of another teacher.
        tokens: of the calibration set, at most.
        folder: for the text.
    """

    def __init__(self, teacher: str, data: str, tokens: int, folder: Path) -> None:
        setting = SETTINGS.get(teacher)
        path, text = (str(setting.teacher), setting.data) if setting else (teacher, data)
        loaded = load_teacher(path, revision=None, device=_CPU, dtype=torch.float32)
        request = CorpusRequest(
            data=text,
            block=BLOCK,
            calibration_blocks=tokens // BLOCK,
            distillation_blocks=1,
            validation_blocks=_VALIDATION_TOKENS // BLOCK,
        )
        self.corpus, self.model = read_corpus(request, loaded.tokenizer, folder), loaded.model
        self.axis_map: AxisMap = verified_axis_map(self.model.config)
        self.widths = setting.widths if setting else None

    @cached_property
    def students(self) -> Mapping[str, Architecture]:
        """By name: two thirds of neurons, of each group's heads, and 5/6 of hidden where no setting says."""
        whole = self.axis_map.teacher
        neurons = {Axis.MLP: 8 * round(whole.mlp / 12)}
        heads = {Axis.HEADS: whole.kv_heads * max(1, 2 * whole.heads // whole.kv_heads // 3)}
        uniform = self.widths or {Axis.HIDDEN: 8 * round(whole.hidden * 5 / 48), **neurons, **heads}
        return {"uniform": self._cut(uniform), "neurons": self._cut(neurons), "heads": self._cut(heads)}

    def _cut(self, sizes: Mapping[Axis, int]) -> Architecture:
        whole = {axis: self.axis_map.teacher[axis] for axis in self.axis_map.free}
        return self.axis_map.complete({**whole, **sizes})

    @cached_property
    def _ranking(self) -> Ranking:
        return rank(self.model, self.axis_map, self.corpus.calibration, "study")

    @cached_property
    def _sorted(self) -> Mapping[str, Tensor]:
        return sort_by_importance(saved_tensors(self.model, self.axis_map), self.axis_map, self._ranking)

    @torch.no_grad()
    def moments(self, tokens: int) -> Moments:
        """Return moments in float64 on the first tokens of the calibration set."""
        listener = MomentsListener(self.model, self.axis_map, tokens=tokens)
        with listener.on():
            for batch in batches(self.corpus.calibration[: tokens // BLOCK]):
                final_states(self.model, batch.long())
        reads = {
            name: InputMoment(place, sums[0].mean, torch.tensor(float(sums[0].tokens)), sums[0].mean_half)
            for (name, place), sums in listener.seconds.items()
        }
        return Moments(reads, {}, "study")

    def loss(self, student: str, moments: Moments | None, way: Way) -> float:
        """Return the validation loss straight after cutting, in nats per token.

        Args:
            student: its name.
            moments: in float64; None: nothing is repaired.
            way: of the repair.
        """
        repair = Repair()
        if moments is not None:
            dtype: torch.dtype = getattr(torch, way.precision)
            reads = {name: _rounded(read, dtype) for name, read in moments.reads.items()}
            kept = replace(moments, reads=reads).sorted_by(self.axis_map, self._ranking)
            repair = Repair(least_squares=True, moments=kept, ridge=way.ridge)
        architecture = self.students[student]
        cut = extract(self._sorted, self.axis_map, self._ranking, architecture, repair=repair)
        return validation_loss(cut, self.corpus.validation, self.corpus.validation_learnt)

    @property
    def teacher_loss(self) -> float:
        """Of the teacher itself."""
        return validation_loss(self.model, self.corpus.validation, self.corpus.validation_learnt)


def _rounded(read: InputMoment, dtype: torch.dtype) -> InputMoment:
    half = None if read.half is None else read.half.to(dtype)
    return replace(read, second=read.second.to(dtype), half=half)
