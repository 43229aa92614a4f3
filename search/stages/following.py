"""A process that takes part in the trainings of a run, and does nothing else; see ``ranks``."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import torch

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.sharing import receive
from evaluators.distillation.targets.batch import Targets
from evaluators.teacher import Teacher
from search.settings.precision import accelerator_of
from search.settings.resolution import Resolved
from search.stages.correction import read_back, train_teacher
from search.stages.energy import metered
from search.stages.preparation import teacher_of
from search.stages.targets import targets_of
from search.stages.teaching import teaching_model
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from search.training.orders import Begin, Correct, TakeCorrected, TakeTargets, Train
from search.training.ranks import FAILURES, Ranks
from search.training.trainer import Trainer


class Follower:
    """Carries out the orders of the main process."""

    resolved: Resolved
    directory: RunDirectory
    corpus: Corpus
    teacher: Teacher
    teaching: Teacher
    """Whose targets are learnt."""
    targets: tuple[Targets, Targets]
    """Those of the rungs, and those of retraining."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.console = ranks, Console(quiet=True)
        self.metering = ExitStack()

    def follow(self) -> None:
        """Do as told, until let go.

        What fails in a training fails in the main process too, which deals with it.

        Raises:
            InputError: the teacher cannot be loaded here.
            LostProcessError: the main process is gone, or this one failed alone.
        """
        with self.metering:
            for order in self.ranks.orders():
                match order:
                    case Begin():
                        self._begin(order)
                    case Correct():
                        self._train(self._correct)
                    case TakeCorrected():
                        self.teacher = read_back(self.resolved.config, self.teacher, self.directory)
                    case TakeTargets():
                        self._take_targets(order.blocks)
                    case Train():
                        self._train(partial(self._distil, order))

    def _begin(self, order: Begin) -> None:
        """A run of a family comes after another, whose models go first."""
        for models in ("teacher", "teaching", "targets"):
            vars(self).pop(models, None)
        gc.unfreeze()
        gc.collect()
        self.resolved, self.directory = order.resolved, RunDirectory(order.directory)
        self.corpus = order.corpus
        self.metering.close()
        self.metering.enter_context(metered(self.directory.energy, self.resolved.config.device))
        self.teacher = teacher_of(self.resolved.config)
        gc.freeze()

    def _take_targets(self, blocks: int) -> None:
        """They lie in the run directory; nothing is missing there, so nothing is made."""
        corpus = replace(self.corpus, distillation=self.corpus.distillation[:blocks])
        config = self.resolved.config
        self.teaching = teaching_model(config, self.teacher)
        self.targets = targets_of(
            self.resolved, self.teaching, corpus, self.directory, accelerator_of(config), self.console
        )

    def _train(self, training: Callable[[], object]) -> None:
        with suppress(*FAILURES), self.ranks.together():
            training()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _correct(self) -> None:
        train_teacher(self.resolved.config, self.teacher, self.corpus, self.directory, lambda tokens: None)

    def _distil(self, order: Train) -> None:
        config = self.resolved.config
        accelerator = accelerator_of(config)
        trainer = Trainer(config, self.teaching.model, self.corpus.validation, accelerator)
        student = receive(order.student, accelerator.device)
        trainer.train(student, self.targets[order.retraining], order.lesson, lambda tokens: None)
