"""A teacher with its text and cached targets, and what its students are worth after a short distillation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.corpus.corpus import CorpusRequest, read_corpus
from evaluators.corpus.mixture import parse_data, read_mixture
from evaluators.distillation.loop import distil
from evaluators.distillation.losses import Loss
from evaluators.distillation.optimizers import OptimizerName
from evaluators.distillation.schedule import Schedule, peak_rate
from evaluators.distillation.states import States
from evaluators.distillation.targets.batch import Batch, Predictions, Targets, rows
from evaluators.distillation.targets.cached import CachedTargets
from evaluators.distillation.targets.live import Hidden
from evaluators.metrics.loss import validation_loss
from evaluators.teacher import Teacher, load_teacher
from studies.bench.setting import STEP_TOKENS, Setting

CALIBRATION_BLOCKS = 128
VALIDATION_TOKENS = 16384


class Bench:
    """What all students of one teacher share."""

    def __init__(
        self,
        setting: Setting,
        steps: int,
        folder: Path,
        data: Sequence[str] = (),
        calibration_blocks: int = CALIBRATION_BLOCKS,
        step_tokens: int = STEP_TOKENS,
        validation_tokens: int = VALIDATION_TOKENS,
    ) -> None:
        """Load the teacher, read its text and run it once over what the students learn from.

        Args:
            setting: the teacher and its text.
            steps: of the longest distillation.
            folder: for the text and the targets.
            data: a mixture of texts with shares in place of the setting's.
            calibration_blocks: that the teacher is ranked on.
            step_tokens: of an optimiser step.
            validation_tokens: of the held-out text.
        """
        self.setting = setting
        device, dtype = torch.device("cpu"), torch.float32
        self.teacher: Teacher = load_teacher(str(setting.teacher), revision=None, device=device, dtype=dtype)
        self.step_tokens, self.step_blocks = step_tokens, step_tokens // setting.block
        request = CorpusRequest(
            data=setting.data,
            block=setting.block,
            calibration_blocks=calibration_blocks,
            distillation_blocks=steps * self.step_blocks,
            validation_blocks=validation_tokens // setting.block,
        )
        tokenizer, cache = self.teacher.tokenizer, folder / "text"
        if data:
            self.corpus = read_mixture(parse_data(data), request, tokenizer, cache)
        else:
            self.corpus = read_corpus(request, tokenizer, cache)
        self.accelerator = Accelerator(cpu=True, mixed_precision=setting.precision)
        self.targets = CachedTargets(
            self.teacher.model,
            self.corpus.distillation,
            Hidden(self.teacher.model),
            folder / f"targets-{setting.name}",
            self.teacher.fingerprint,
            learnt=self.corpus.distillation_learnt,
        )
        self.targets.fill()

    def loss(self, model: PreTrainedModel) -> float:
        """Validation loss in float32, nats per token."""
        return validation_loss(model, self.corpus.validation, self.corpus.validation_learnt)

    def distilled(
        self,
        student: PreTrainedModel,
        steps: int,
        seed: int,
        rate: float | None = None,
        *,
        targets: Targets | None = None,
        loss: Loss | None = None,
        states: States | None = None,
        optimizer: OptimizerName = OptimizerName.ADAMW,
        before: float | None = None,
    ) -> dict[str, Any]:
        """Distil a student in place; losses before and after, parameters and seconds.

        Args:
            student: straight after pruning.
            steps: how many; none is zero-shot alone.
            seed: of the order of the text.
            rate: the highest of the schedule; None for the rule's.
            targets: what is learnt from; by default the teacher's final states.
            loss: on the logits; forward KL by default.
            states: which intermediate ones are compared besides.
            optimizer: what takes the steps.
            before: its loss, if it is known.
        """
        began = time.monotonic()
        before = self.loss(student) if before is None else before
        if steps:
            schedule = Schedule(
                tokens=steps * self.step_tokens,
                blocks=self.step_blocks,
                block=self.setting.block,
                peak_rate=rate or peak_rate(student.num_parameters(), steps, self.step_tokens),
            )
            order = Shuffled(targets or self.targets, seed)
            distil(student, order, schedule, self.accelerator, loss=loss, states=states, optimizer=optimizer)
            student.float()
        return {
            "parameters": student.num_parameters(),
            "before": before,
            "after": self.loss(student) if steps else before,
            "seconds": round(time.monotonic() - began, 1),
        }


class Shuffled:
    """The same blocks in the order of a seed."""

    def __init__(self, targets: Targets, seed: int) -> None:
        self.targets, self.blocks = targets, targets.blocks
        self.order = torch.randperm(targets.blocks, generator=torch.Generator().manual_seed(seed))
        self.tokens, self.learnt = targets.tokens[self.order], rows(targets.learnt, self.order)

    def on_device(self) -> AbstractContextManager[None]:
        """See ``Targets``."""
        return self.targets.on_device()

    def predictions(self, *targets: Tensor) -> Predictions | None:
        """See ``Targets``."""
        return self.targets.predictions(*targets)

    def batch(self, numbers: Tensor) -> Batch:
        """The blocks at these places of the shuffled order."""
        return self.targets.batch(self.order[numbers])
