"""Everything that a candidate is evaluated with, prepared once for a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.loop import Checkpointing, DistillationResult
from evaluators.distillation.processes import describe_student, send_weights
from evaluators.distillation.targets.batch import Targets
from evaluators.metrics.latency import (
    Latency,
    LatencyCache,
    Workload,
    latency_key,
    measure_latency,
    measure_latency_beside,
)
from evaluators.metrics.loss import validation_loss
from evaluators.teacher import Teacher
from search.settings.config import RunConfig
from search.settings.costs import Costs
from search.storage.run_directory import atomic_write
from search.training.process_group import run_processes
from search.training.training import Train, Trainer, TrainingJob
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, layers_kept
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from space.enumeration.search_space import SearchSpace


@dataclass(frozen=True)
class RunContext:
    """Teacher, text, ranking and targets of a run, and what to do with them."""

    config: RunConfig
    directory: Path
    teacher: Teacher
    taught_by: Teacher
    """Whose targets are learnt: the teacher, or another that the run names."""
    axis_map: AxisMap
    space: SearchSpace
    corpus: Corpus
    ranking: Ranking
    canonical: Mapping[str, Tensor]
    """The teacher's weights, sorted by importance."""
    repair: Repair
    """Of students straight after cutting."""
    targets: Targets
    retraining_targets: Targets
    accelerator: Accelerator
    book: LatencyCache
    workload: Workload
    basis_trial: BasisTrial | None = None
    """How the basis of hidden was chosen, if it was tried out."""

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """A student straight after pruning, its weights in the teacher's dtype."""
        return extract(self.canonical, self.axis_map, self.ranking, architecture, repair=self.repair)

    def kept_layers(self, architecture: Architecture) -> list[int]:
        """Which of the teacher's layers a student keeps, ascending."""
        return layers_kept(self.axis_map, self.ranking, architecture)

    @property
    def trainer(self) -> Trainer:
        """Trains the students, here and in all processes that take part."""
        return Trainer(self.config, self.taught_by.model, self.corpus.validation, self.accelerator)

    def loss(self, model: PreTrainedModel) -> float:
        """The validation loss in the precision of training, as the rungs compare it."""
        return self.trainer.loss(model)

    def exact_loss(self, model: PreTrainedModel) -> float:
        """The validation loss in the precision of the weights, as results state it."""
        return validation_loss(model, self.corpus.validation)

    def latency(self, model: PreTrainedModel) -> Latency:
        """The latency of a student or of the teacher on this device."""
        teacher = self.teacher.model
        reference = self.book.look_up(self._key(teacher), lambda: measure_latency(teacher, self.workload))
        if model is teacher:
            return reference
        return self.book.look_up(
            self._key(model), lambda: measure_latency_beside(model, teacher, reference, self.workload)
        )

    @property
    def formulas(self) -> Costs:
        """What students cost by their sizes."""
        return Costs(self.axis_map, self.workload, self.teacher.stored_dtype.itemsize)

    def costs(self, architecture: Architecture, axis_map: AxisMap | None = None) -> dict[str, float]:
        """The objectives that follow from the sizes alone, of a student unless another map is given."""
        formulas = replace(self.formulas, axis_map=axis_map or self.axis_map)
        return formulas.of(architecture, self.kept_layers(architecture))

    def train(
        self,
        student: PreTrainedModel,
        tokens: int,
        targets: Targets,
        advance: Callable[[int], None],
        validations: int,
        checkpointing: Checkpointing | None = None,
    ) -> DistillationResult:
        """Distil a student in place, its loss watched at equal distances.

        Other processes that train with this one are sent the student.

        Raises:
            DivergenceError: see ``distil``, as for others.
            LostProcessError: see ``RunProcesses.in_step``.
        """
        job, joined = TrainingJob(tokens, validations, checkpointing), run_processes()
        if joined.is_only:
            return self.trainer.train(student, targets, job, advance)
        retraining = targets is self.retraining_targets
        assert retraining or targets is self.targets, "the others have the targets of the run alone"
        joined.send_command(Train(describe_student(student), job, retraining))
        with joined.in_step():
            send_weights(student)
            return self.trainer.train(student, targets, job, advance)

    def _key(self, model: PreTrainedModel) -> str:
        dtype = next(model.parameters()).dtype
        device = torch.device(self.config.device)
        return latency_key(model.config, self.teacher.model.config, device, dtype, self.workload)


@dataclass(frozen=True)
class BasisScore:
    """One student of the trial."""

    basis: str
    origin: str
    """Of the baselines."""
    label: str
    parameters: int
    loss: float | None
    """Validation loss after the tokens of the trial, nats per token; None if it could not be trained."""


def _loss(one: BasisScore) -> float:
    return math.inf if one.loss is None else one.loss


@dataclass(frozen=True)
class BasisTrial:
    """What the trial of the bases came to."""

    tokens: int
    """Of distillation, for each student."""
    tried: Sequence[BasisScore]

    @property
    def basis(self) -> str:
        """The one with the best student; of equal ones the first; coordinates if there is none."""
        best = min(self.tried, key=_loss, default=None)
        return BasisName.COORDINATE.value if best is None else best.basis

    @property
    def reason(self) -> str:
        """In words, for the report and the terminal."""
        if all(one.loss is None for one in self.tried):
            return (
                f"hidden is cut along the {self.basis} basis: no hand-made student could be trained to tell"
            )
        best = {basis: self._best(basis) for basis in dict.fromkeys(one.basis for one in self.tried)}
        losses = " and ".join(f"{one.loss:.4f} ({basis})" for basis, one in best.items() if one.loss)
        return (
            f"hidden is cut along the {self.basis} basis: after {self.tokens:,} tokens the best hand-made "
            f"student has a loss of {losses}"
        )

    def _best(self, basis: str) -> BasisScore:
        return min((one for one in self.tried if one.basis == basis), key=_loss)

    def plus(self, one: BasisScore) -> BasisTrial:
        """With one more student."""
        return replace(self, tried=[*self.tried, one])

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        atomic_write(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path, tokens: int) -> BasisTrial:
        """Read what ``save`` wrote; one without students if there is nothing."""
        if not path.exists():
            return cls(tokens, [])
        about = json.loads(path.read_text())
        return cls(about["tokens"], [BasisScore(**one) for one in about["tried"]])
