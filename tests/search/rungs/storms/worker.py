"""A worker without models, for tests that start many and kill some, and what its work leaves behind."""

from __future__ import annotations

import fcntl
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from optuna.storages import RDBStorage

from search.rungs.evaluation import Evaluation, FinishedTrial
from search.rungs.loop import open_rungs
from search.rungs.rung import Rung
from search.settings.config import RunConfig
from search.storage.workers import Workers
from space.axes.architecture import Architecture
from tests.search.synthetic import Evaluator, Fails, demo_space, evaluation, make_search, records_of

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


#: Made where the workers are forked from, so that they begin at once.
SPACE = demo_space(600_000, 0.05)


def nobody(architecture: Architecture, rung: int) -> bool:
    """No candidate fails."""
    return False


class Noted(Evaluator):
    """Takes its time, and notes each evaluation that begins and each that was told.

    Args:
        folder: where the notes lie.
        seconds: of the longest evaluation.
        fails: see ``Evaluator``.
    """

    def __init__(self, folder: Path, seconds: float, fails: Fails) -> None:
        super().__init__(fails)
        self.notes, self.seconds, self.last = folder / "notes", seconds, ""

    def evaluate(self, architecture: Architecture, rung: int, advance: Callable[[int], None]) -> Evaluation:
        """Note, wait, and answer."""
        self.last = f"{rung} {architecture.label}"
        self._note("begun")
        time.sleep(random.uniform(0.3, 1) * self.seconds)
        return super().evaluate(architecture, rung, advance)

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """Called when a trial was told."""
        self._note("told")

    def _note(self, what: str) -> None:
        with self.notes.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{what} {self.last}\n")


@dataclass(frozen=True)
class Crew:
    """Workers of one search, each a process."""

    folder: Path
    config: RunConfig
    seconds: float = 0.02
    """Of the longest evaluation."""
    fails: Fails = nobody
    """A function that another process can import."""

    def start(self) -> BaseProcess:
        """One more worker."""
        process = _CONTEXT.Process(target=_work, args=(self.folder, self.config, self.seconds, self.fails))
        process.start()
        return process

    @contextmanager
    def rungs(self) -> Iterator[list[Rung]]:
        """As they stand; connections are closed afterwards."""
        rungs = open_rungs(self.config, SPACE, self.folder)
        try:
            yield rungs
        finally:
            storage = rungs[0].study._storage
            while (
                within := getattr(storage, "within", None) or getattr(storage, "_backend", None)
            ) is not None:
                storage = within
            if isinstance(storage, RDBStorage):
                storage.engine.dispose()

    def begun(self) -> int:
        """Evaluations that were begun by now."""
        notes = self.folder / "notes"
        return notes.read_text().count("begun") if notes.exists() else 0

    def check(self, failures: Callable[[FinishedTrial], bool] = lambda record: False) -> list[FinishedTrial]:
        """Everything was evaluated once, nothing that was told was begun again, and nothing is open.

        Args:
            failures: which records may have failed.
        """
        with self.rungs() as rungs:
            records = records_of(rungs)
            counts = [len(rung.records()) for rung in rungs]
            assert not any(rung.has_unfinished() for rung in rungs)
        assert counts == [self.config.trials, *self.config.rung_candidates]
        assert max(Counter((record.rung, record.architecture) for record in records).values()) == 1
        for record in records:
            if record.evaluation is None:
                assert failures(record), record.failure
            else:
                assert record.evaluation == evaluation(record.architecture, record.rung)
        told: set[str] = set()
        for line in (self.folder / "notes").read_text().splitlines():
            what, _, which = line.partition(" ")
            assert not (what == "begun" and which in told), f"{which} was told and begun again"
            told |= {which} if what == "told" else set()
        return records


def finish(processes: Sequence[BaseProcess], seconds: float = 120) -> None:
    """Wait until all have ended well."""
    for process in processes:
        process.join(seconds)
        assert process.exitcode == 0


def _work(folder: Path, config: RunConfig, seconds: float, fails: Fails) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workers = Workers(folder)
    random.seed()
    with workers.present():
        rungs = open_rungs(config, SPACE, folder, workers)
        make_search(config, SPACE, rungs, Noted(folder, seconds, fails), workers).run()
    sys.exit(0)
