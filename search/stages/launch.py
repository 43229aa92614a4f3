"""Runs that ``accelerate launch`` or ``torchrun`` started in several processes: main process and followers.

When the main process ends, so do the others: it releases them, or, if it left a training that they are still
in, the launcher ends them.
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
from functools import partial
from types import FrameType
from typing import NoReturn

import torch

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.processes import receive_student
from evaluators.distillation.targets.batch import Targets
from evaluators.metrics.energy import energy_meter
from evaluators.teacher import Teacher
from search.settings.ledger import cap_device_memory
from search.settings.methods import accelerator_of
from search.settings.resolved import Resolved
from search.stages.correction import load_corrected, train_teacher
from search.stages.preparation import teacher_of
from search.stages.targets import targets_of, teaching_model
from search.storage.run_directory import RunDirectory
from search.terminal.command import LostProcessError
from search.terminal.console import Console
from search.training.process_group import FAILURES, RunProcesses, run_processes
from search.training.training import Begin, Correct, TakeCorrected, TakeTargets, Train, Trainer
from space.input_error import InputError


class Follower:
    """Executes the commands of the main process in another process of the run."""

    resolved: Resolved
    directory: RunDirectory
    corpus: Corpus
    teacher: Teacher
    teaching: Teacher
    """The model that provides the targets."""
    targets: tuple[Targets, Targets]
    """Targets of the rungs, and of retraining."""

    def __init__(self, processes: RunProcesses) -> None:
        self.processes, self.console = processes, Console(quiet=True)
        self.metering = ExitStack()

    def follow(self) -> None:
        """Execute commands until the main process releases this one.

        A training that fails here fails in the main process too, which handles it.

        Raises:
            InputError: this process cannot load the teacher.
            LostProcessError: the main process is gone, or only this one failed.
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
        """Load the teacher of a run; in a family, free the models of the previous run first.

        It lies on the host, and comes to the device for what this process does there: training.
        """
        for models in ("teacher", "teaching", "targets"):
            vars(self).pop(models, None)
        gc.unfreeze()
        gc.collect()
        self.resolved, self.directory = command.resolved, RunDirectory(command.directory)
        self.corpus = command.corpus
        cap_device_memory(self.resolved)
        self.metering.close()
        self.metering.enter_context(energy_meter(self.directory.energy, self.resolved.config.device))
        self.teacher = teacher_of(self.resolved.config, stays=False)
        gc.freeze()

    def _take_targets(self, blocks: int) -> None:
        """Open the targets in the run directory; the main process has made them all."""
        corpus, config = self.corpus.shortened(blocks), self.resolved.config
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
        config, placement = self.resolved.config, self.resolved.placement
        train_teacher(config, self.teacher, self.corpus, self.directory, lambda tokens: None, placement)

    def _distil(self, command: Train) -> None:
        config = self.resolved.config
        accelerator = accelerator_of(config)
        placement, corpus = self.resolved.placement, self.corpus
        trainer = Trainer(
            config,
            self.teaching.model,
            corpus.validation,
            accelerator,
            placement,
            corpus.validation_learnt,
        )
        student = receive_student(command.student, accelerator.device)
        trainer.train(student, self.targets[command.retraining], command.job, lambda tokens: None)


def lead_or_follow(run: Callable[[], int]) -> NoReturn:
    """Lead the run or follow the main process, then end this process.

    It ends by ``os._exit``: destroying the process group would wait for all, or abort where one is ahead.

    Args:
        run: executes the run in the main process, and returns the exit status.
    """
    # Ctrl-C reaches all processes of a terminal; until a process knows its role, it just ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    processes = run_processes()
    status = _lead(run, processes) if processes.is_main else _follow(processes)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _lead(run: Callable[[], int], processes: RunProcesses) -> int:
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
    if not processes.out_of_step:
        with suppress(LostProcessError):  # a lost process needs no release
            processes.release_others()
    return status


def _follow(processes: RunProcesses) -> int:
    """Follow without output, except for the reason why only this process cannot go on."""
    logging.disable()
    warnings.simplefilter("ignore")
    try:
        Follower(processes).follow()
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
    """Act as Ctrl-C once; the launcher repeats the signal, which would interrupt the cleanup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
