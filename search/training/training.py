"""How the students of a run are trained: the same in every process that takes part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.loop import Checkpointing, DistillationResult, TrainingMonitor, distil
from evaluators.distillation.processes import StudentDescription
from evaluators.distillation.schedule import Schedule, ScheduleShape, peak_rate
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.training import Advance
from evaluators.metrics.loss import validation_loss
from search.settings.config import RunConfig
from search.settings.methods import loss_of, states_of
from search.settings.resolution import Resolved


@dataclass(frozen=True)
class TrainingJob:
    """One training."""

    tokens: int
    validations: int
    """At equal distances."""
    checkpointing: Checkpointing | None = None


@dataclass(frozen=True)
class Trainer:
    """What all trainings of a run have in common."""

    config: RunConfig
    teaching: PreTrainedModel
    """Whose targets are learnt."""
    validation: Tensor
    """(N, T) blocks."""
    accelerator: Accelerator

    def loss(self, model: PreTrainedModel) -> float:
        """The validation loss in the precision of training, as the rungs compare it."""
        with self.accelerator.autocast():
            return validation_loss(model, self.validation)

    def train(
        self, student: PreTrainedModel, targets: Targets, job: TrainingJob, advance: Advance
    ) -> DistillationResult:
        """Distil a student in place, its loss watched.

        Raises:
            DivergenceError: see ``distil``, as for others.
        """
        schedule = self._schedule(job.tokens, peak_rate(student.num_parameters()))
        monitor = TrainingMonitor(validate=self.loss, times=job.validations, advance=advance)
        return distil(
            student.float(),
            targets,
            schedule,
            self.accelerator,
            monitor,
            job.checkpointing,
            loss=loss_of(self.config),
            states=states_of(self.config, student, self.teaching),
        )

    def _schedule(self, tokens: int, rate: float) -> Schedule:
        """Of so many tokens; if one is to be the beginning of another, all have the first rung's warm-up."""
        block = self.validation.shape[1]
        of_any = partial(Schedule, blocks=self.config.batch_blocks, block=block, peak_rate=rate)
        if self.config.schedule == ScheduleShape.COSINE:
            return of_any(tokens=tokens)
        warm_up = of_any(tokens=self.config.rung_tokens[0]).warm_up
        return of_any(tokens=tokens, shape=ScheduleShape.WSD, warm_up_steps=warm_up)


@dataclass(frozen=True)
class Begin:
    """A run: load its teacher."""

    resolved: Resolved
    directory: Path
    """Of the run, on a disk that all processes see."""
    corpus: Corpus
    """With as much text as the correction of the teacher reads."""


@dataclass(frozen=True)
class Correct:
    """Train the teacher itself."""


@dataclass(frozen=True)
class TakeCorrected:
    """Load the corrected teacher from where it was written."""


@dataclass(frozen=True)
class TakeTargets:
    """Open the teacher's targets, which are made."""

    blocks: int
    """Of the distillation set, the first so many."""


@dataclass(frozen=True)
class Train:
    """Train a student that the main process then sends."""

    student: StudentDescription
    job: TrainingJob
    retraining: bool
    """Whether it learns from the targets of retraining, and not from those of the rungs."""
