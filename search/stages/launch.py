"""A run that ``accelerate launch`` or ``torchrun`` started in several processes: who does what, and the end.

Whatever ends the main process ends the others: it lets them go, or, where they are in a training that it
left, they are ended by what started them.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import torch

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.processes import receive_student
from evaluators.distillation.targets.batch import Targets
from evaluators.metrics.energy import energy_meter
from evaluators.teacher import Teacher
from search.settings.methods import accelerator_of
from search.settings.resolution import Resolved
from search.stages.correction import load_corrected, train_teacher
from search.stages.preparation import teacher_of
from search.stages.targets import targets_of, teaching_model
from search.storage.run_directory import RunDirectory
from search.terminal.command import LostProcessError
from search.terminal.console import Console
from search.training.process_group import FAILURES, RunProcesses
from search.training.training import Begin, Correct, TakeCorrected, TakeTargets, Train, Trainer
from space.input_error import InputError

if TYPE_CHECKING:
    from search.training.process_group import RunProcesses


class Follower:
    """Carries out the commands of the main process."""

    resolved: Resolved
    directory: RunDirectory
    corpus: Corpus
    teacher: Teacher
    teaching: Teacher
    """Whose targets are learnt."""
    targets: tuple[Targets, Targets]
    """Those of the rungs, and those of retraining."""

    def __init__(self, processes: RunProcesses) -> None:
        self.processes, self.console = processes, Console(quiet=True)
        self.metering = ExitStack()

    def follow(self) -> None:
        """Do as told, until let go.

        What fails in a training fails in the main process too, which deals with it.

        Raises:
            InputError: the teacher cannot be loaded here.
            LostProcessError: the main process is gone, or this one failed alone.
        """
        with self.metering:
            for command in self.processes.commands():
                match command:
                    case Begin():
                        self._begin(command)
                    case Correct():
                        self._train(self._correct)
                    case TakeCorrected():
                        self.teacher = load_corrected(self.resolved.config, self.teacher, self.directory)
                    case TakeTargets():
                        self._take_targets(command.blocks)
                    case Train():
                        self._train(partial(self._distil, command))

    def _begin(self, command: Begin) -> None:
        """A run of a family comes after another, whose models go first."""
        for models in ("teacher", "teaching", "targets"):
            vars(self).pop(models, None)
        gc.unfreeze()
        gc.collect()
        self.resolved, self.directory = command.resolved, RunDirectory(command.directory)
        self.corpus = command.corpus
        self.metering.close()
        self.metering.enter_context(energy_meter(self.directory.energy, self.resolved.config.device))
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
        with suppress(*FAILURES), self.processes.in_step():
            training()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _correct(self) -> None:
        train_teacher(self.resolved.config, self.teacher, self.corpus, self.directory, lambda tokens: None)

    def _distil(self, command: Train) -> None:
        config = self.resolved.config
        accelerator = accelerator_of(config)
        trainer = Trainer(config, self.teaching.model, self.corpus.validation, accelerator)
        student = receive_student(command.student, accelerator.device)
        trainer.train(student, self.targets[command.retraining], command.job, lambda tokens: None)


def lead_or_follow(run: Callable[[], int]) -> NoReturn:
    """Lead the run, or follow whoever does, and end the process.

    It ends at once: taking down what connects processes waits for all, or aborts where one was quicker.

    Args:
        run: does it, in the main process, and returns the exit status.
    """
    # Ctrl-C reaches all processes of a terminal; until one knows its part it just ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from search.training.process_group import run_processes

    joined = run_processes()
    status = _lead(run, joined) if joined.is_main else _follow(joined)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _lead(run: Callable[[], int], joined: RunProcesses) -> int:
    signal.signal(signal.SIGINT, _stop_once)
    signal.signal(signal.SIGTERM, _stop_once)
    try:
        status = run()
    except LostProcessError as error:
        print(f"slimsearch: {error}. Run the same command again to go on where it stopped.", file=sys.stderr)
        status = 1
    except Exception:
        traceback.print_exc()
        status = 1
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    if not joined.out_of_step:
        with suppress(LostProcessError):  # who is gone needs no leave
            joined.release_others()
    return status


def _follow(joined: RunProcesses) -> int:
    """Say nothing, but for why this process cannot go on while the others could."""
    logging.disable()
    warnings.simplefilter("ignore")
    from search.stages.launch import Follower

    try:
        Follower(joined).follow()
    except LostProcessError as error:
        return _failed(str(error)) if error.failed else 1
    except InputError as error:
        return _failed(str(error))
    except Exception:
        return _failed(traceback.format_exc())
    return 0


def _failed(why: str) -> int:
    print(f"slimsearch, process {os.environ['RANK']}: {why}", file=sys.stderr)
    return 1


def _stop_once(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C does; what started the processes passes the signal on, and would interrupt the tidying up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
