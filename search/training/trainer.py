"""How the students of a run are trained: the same in every process that takes part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.loop import Checkpointing, Outcome, Watch, distil
from evaluators.distillation.schedule import Schedule, Shape, peak_rate
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.training import Advance
from evaluators.metrics.loss import validation_loss
from search.settings.config import RunConfig
from search.settings.distilling import loss_of, states_of


@dataclass(frozen=True)
class Lesson:
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

    def train(self, student: PreTrainedModel, targets: Targets, lesson: Lesson, advance: Advance) -> Outcome:
        """Distil a student in place, its loss watched.

        Raises:
            DivergenceError: see ``distil``, as for others.
        """
        schedule = self._schedule(lesson.tokens, peak_rate(student.num_parameters()))
        watch = Watch(validate=self.loss, times=lesson.validations, advance=advance)
        return distil(
            student.float(),
            targets,
            schedule,
            self.accelerator,
            watch,
            lesson.checkpointing,
            loss=loss_of(self.config),
            states=states_of(self.config, student, self.teaching),
        )

    def _schedule(self, tokens: int, rate: float) -> Schedule:
        """Of so many tokens; if one is to be the beginning of another, all have the first rung's warm-up."""
        block = self.validation.shape[1]
        of_any = partial(Schedule, blocks=self.config.batch_blocks, block=block, peak_rate=rate)
        if self.config.schedule == Shape.COSINE:
            return of_any(tokens=tokens)
        warm_up = of_any(tokens=self.config.rung_tokens[0]).warm_up
        return of_any(tokens=tokens, shape=Shape.WSD, warm_up_steps=warm_up)
