"""Training of the students of a run, the same in all processes; and the commands that processes exchange."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.loop import Checkpointing, DistillationResult, TrainingMonitor, distil
from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.processes import StudentDescription
from evaluators.distillation.schedule import Schedule, ScheduleShape
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.training import Advance
from evaluators.metrics.loss import validation_loss
from search.settings.config import RunConfig
from search.settings.methods import loss_of, states_of
from search.settings.placement import STAYS, Placement
from search.settings.resolved import Resolved


@dataclass(frozen=True)
class TrainingJob:
    """The length, learning rate, validations and checkpoints of one training."""

    tokens: int
    rate: float
    """Learning rate at its peak."""
    validations: int
    """Number of validations, evenly spaced."""
    checkpointing: Checkpointing | None = None


@dataclass(frozen=True)
class Trainer:
    """Distils students, with the settings that all trainings of a run share."""

    config: RunConfig
    teaching: PreTrainedModel
    """The model that provides the targets."""
    validation: Tensor
    """(N, T) validation blocks."""
    accelerator: Accelerator
    placement: Placement = STAYS
    """Of the run; its micro-batch and recomputation are where every training begins."""
    validation_learnt: Tensor | None = None
    """(N, T) bool, True where a validation token's next one counts; None: all count."""

    def loss(self, model: PreTrainedModel, advance: Advance = lambda tokens: None) -> float:
        """Return the validation loss in the precision of training, which the rungs compare.

        Args:
            model: in evaluation mode.
            advance: called with the number of tokens that are read.
        """
        with self.accelerator.autocast():
            return validation_loss(model, self.validation, self.validation_learnt, advance)

    def train(
        self, student: PreTrainedModel, targets: Targets, job: TrainingJob, advance: Advance
    ) -> DistillationResult:
        """Distil a student in place, with validations on the way.

        Raises:
            DivergenceError: see ``distil``, also for its other errors.
        """
        schedule = self._schedule(job.tokens, job.rate)
        monitor = TrainingMonitor(validate=self.loss, times=job.validations, advance=advance)
        return distil(
            student,
            targets,
            schedule,
            self.accelerator,
            monitor,
            job.checkpointing,
            loss=loss_of(self.config),
            states=states_of(self.config, student, self.teaching),
            optimizer=OptimizerName(self.config.optimizer),
            micro_batch=self.placement.micro_batch,
            recompute=self.placement.recompute,
        )

    def _schedule(self, tokens: int, rate: float) -> Schedule:
        """Return the schedule of a training; under WSD all share rung 1's warm-up, to resume one another.

        A training shorter than rung 1, which resumes none, has a shorter warm-up.
        """
        block = self.validation.shape[1]
        schedule = partial(Schedule, blocks=self.config.batch_blocks, block=block, peak_rate=rate)
        if self.config.schedule == ScheduleShape.COSINE:
            return schedule(tokens=tokens)
        warm_up = schedule(tokens=min(tokens, self.config.rung_tokens[0])).warm_up
        return schedule(tokens=tokens, shape=ScheduleShape.WSD, warm_up_steps=warm_up)


@dataclass(frozen=True)
class Begin:
    """Command: begin a run and load its teacher."""

    resolved: Resolved
    directory: Path
    """Run directory, on a disk that all processes share."""
    corpus: Corpus
    """Corpus with all the text that the correction of the teacher reads."""


@dataclass(frozen=True)
class Correct:
    """Command: train the teacher itself."""


@dataclass(frozen=True)
class TakeCorrected:
    """Command: load the corrected teacher from the run directory."""


@dataclass(frozen=True)
class TakeTargets:
    """Command: open the teacher's targets, which are cached by now."""

    blocks: int
    """Number of blocks of the distillation set, from the first."""


@dataclass(frozen=True)
class Train:
    """Command: train a student, whose weights the main process sends next."""

    student: StudentDescription
    job: TrainingJob
    retraining: bool
    """Whether it trains on the targets of retraining, not on those of the rungs."""
