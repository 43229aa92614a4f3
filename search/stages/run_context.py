"""The context of a run: everything needed to evaluate candidates; and the outcome of the trial of bases."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.loop import Checkpointing, DistillationResult
from evaluators.distillation.processes import describe_student, send_weights
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.training import Advance
from evaluators.metrics.latency import (
    Latency,
    LatencyCache,
    Workload,
    latency_key,
    measure_latency,
    measure_latency_beside,
)
from evaluators.metrics.loss import (
    bits_per_byte,
    predicted_tokens,
    validation_loss,
    validation_loss_from_disk,
)
from evaluators.teacher import Teacher
from search.settings.config import RunConfig
from search.settings.costs import Costs
from search.settings.placement import STAYS, Placement
from search.stages.layer_by_layer import teacher_files
from search.stages.sorted_weights import SortedWeights
from search.stages.task_scores import NO_TASKS, TaskScoring
from search.storage.run_directory import atomic_write
from search.training.peak_rates import BY_RULE, PeakRates
from search.training.process_group import run_processes
from search.training.training import Train, Trainer, TrainingJob
from space.axes.architecture import Architecture
from space.axes.axis_map import AxisMap
from space.cutting.basis import BasisName
from space.cutting.extraction import extract, layers_kept
from space.cutting.ranking import Ranking
from space.cutting.repair import Repair
from space.cutting.shared_weights import SharedWeights
from space.enumeration.search_space import SearchSpace


@dataclass(frozen=True)
class RunContext:
    """Teacher, text, ranking and targets of a run, with the operations on them."""

    config: RunConfig
    directory: Path
    teacher: Teacher
    taught_by: Teacher
    """The model that provides the targets: the teacher, or another one that the run names."""
    axis_map: AxisMap
    space: SearchSpace
    corpus: Corpus
    ranking: Ranking
    sorted_weights: SortedWeights
    """The teacher's weights, sorted by importance."""
    repair: Repair
    """Repair of students straight after cutting."""
    targets: Targets
    retraining_targets: Targets
    accelerator: Accelerator
    latency_cache: LatencyCache
    workload: Workload
    placement: Placement = STAYS
    """Where weights lie and how students train."""
    rates: PeakRates = BY_RULE
    """Peak learning rates in this basis."""
    basis_trial: BasisTrial | None = None
    """The trial that chose the basis of hidden; None without one."""
    tasks: TaskScoring = NO_TASKS
    """Scores models on the tasks that are objectives."""
    shared: SharedWeights | None = None
    """After a nested search, the weights that its students shared, from which they are cut then."""

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """Cut a student from the teacher; its weights keep the teacher's dtype. Or from trained weights."""
        if self.shared is not None:
            return self.shared.extract(architecture)
        return extract(
            self.sorted_weights.tensors,
            self.axis_map,
            self.ranking,
            architecture,
            repair=self.repair,
            device=self.teacher.residence.device,
        )

    def kept_layers(self, architecture: Architecture) -> list[int]:
        """Return the indices of the teacher's layers that a student keeps, ascending."""
        return layers_kept(self.axis_map, self.ranking, architecture)

    @property
    def trainer(self) -> Trainer:
        """The trainer of students, the same in all processes of the run."""
        return Trainer(
            self.config,
            self.taught_by.model,
            self.corpus.validation,
            self.accelerator,
            self.placement,
            self.corpus.validation_learnt,
        )

    def loss(self, model: PreTrainedModel, advance: Advance = lambda tokens: None) -> float:
        """Return the validation loss in the precision of training, which the rungs compare.

        Args:
            model: in evaluation mode.
            advance: called with the number of tokens that are read.
        """
        return self.trainer.loss(model, advance)

    def exact_loss(self, model: PreTrainedModel, advance: Advance = lambda tokens: None) -> float:
        """Return the validation loss in the precision of the weights, which the results state.

        Arguments as for ``loss``.
        """
        return validation_loss(model, self.corpus.validation, self.corpus.validation_learnt, advance)

    def loss_from_disk(self, advance: Advance = lambda tokens: None) -> float:
        """Return the teacher's ``exact_loss``, with one of its layers in memory at a time."""
        files = teacher_files(self.teacher, self.axis_map, self.config.trust_remote_code)
        learnt = self.corpus.validation_learnt
        return validation_loss_from_disk(files, self.corpus.validation, learnt, advance)

    def bits_per_byte(self, loss: float) -> float | None:
        """Convert a validation loss; None if some tokens alone count, as their bytes are not known."""
        if self.corpus.validation_learnt is not None:
            return None
        return bits_per_byte(loss, predicted_tokens(self.corpus.validation), self.corpus.validation_bytes)

    def latency(self, model: PreTrainedModel) -> Latency:
        """Return the latency of a student or of the teacher on this device, measured or from the cache."""
        teacher = self.teacher.model

        def alone() -> Latency:
            with self.teacher.on_device():
                return measure_latency(teacher, self.workload)

        def beside() -> Latency:
            with self.teacher.on_device():
                return measure_latency_beside(model, teacher, reference, self.workload)

        reference = self.latency_cache.look_up(self._key(teacher), alone)
        return reference if model is teacher else self.latency_cache.look_up(self._key(model), beside)

    @property
    def formulas(self) -> Costs:
        """The costs of students as functions of their sizes."""
        return Costs(self.axis_map, self.workload, self.teacher.stored_dtype.itemsize)

    def costs(self, architecture: Architecture, axis_map: AxisMap | None = None) -> dict[str, float]:
        """Return the objectives that follow from the sizes alone, of a student unless a map is given."""
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
        rate: float | None = None,
    ) -> DistillationResult:
        """Distil a student in place, with ``validations`` evenly spaced validations.

        The peak learning rate is ``rate``, or else that of ``rates``. Any other processes of the run receive
        the student and train with this one.

        Raises:
            DivergenceError: see ``distil``, also for its other errors.
            LostProcessError: see ``RunProcesses.in_step``.
        """
        rate = rate or self.rates.of(self.config, student.num_parameters(), tokens)
        job, processes = TrainingJob(tokens, rate, validations, checkpointing), run_processes()
        if processes.is_only:
            return self.trainer.train(student, targets, job, advance)
        retraining = targets is self.retraining_targets
        assert retraining or targets is self.targets, "the others have the targets of the run alone"
        processes.send_command(Train(describe_student(student), job, retraining))
        with processes.in_step():
            send_weights(student)
            return self.trainer.train(student, targets, job, advance)

    def _key(self, model: PreTrainedModel) -> str:
        dtype = next(model.parameters()).dtype
        device = torch.device(self.config.device)
        return latency_key(model.config, self.teacher.model.config, device, dtype, self.workload)


@dataclass(frozen=True)
class BasisScore:
    """The result of one student of the trial of bases."""

    basis: str
    origin: str
    """Name of the baseline."""
    label: str
    parameters: int
    loss: float | None
    """Validation loss after the tokens of the trial, nats per token; None if it could not be trained."""


def _loss(one: BasisScore) -> float:
    return math.inf if one.loss is None else one.loss


@dataclass(frozen=True)
class BasisTrial:
    """The trial that compares the bases of hidden by short distillation of hand-made students."""

    tokens: int
    """Tokens of distillation for each student."""
    tried: Sequence[BasisScore]

    @property
    def basis(self) -> str:
        """The basis of the best student, the first of equal ones; coordinates if there is none."""
        best = min(self.tried, key=_loss, default=None)
        return BasisName.COORDINATE.value if best is None else best.basis

    @property
    def reason(self) -> str:
        """The reason for the choice in words, for the report and the terminal."""
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
        """Return a copy with one more student."""
        return replace(self, tried=[*self.tried, one])

    def save(self, path: Path) -> None:
        """Write the trial to ``path`` atomically."""
        atomic_write(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path, tokens: int) -> BasisTrial:
        """Read what ``save`` wrote; without a file, return a trial without students."""
        if not path.exists():
            return cls(tokens, [])
        saved = json.loads(path.read_text())
        return cls(saved["tokens"], [BasisScore(**one) for one in saved["tried"]])
