"""What the search costs beside its models: the time of each trial, and what a second worker brings."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import torch
from transformers import LlamaConfig

from search.rungs.evaluation import Evaluation
from search.rungs.loop import Evaluator, Search, SearchTask, open_rungs
from search.rungs.rung import Rung
from search.settings.command_line import read_flags
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.stages.preparation import load, prepare
from search.stages.trial import DistillationEvaluator
from search.storage.run_directory import RunDirectory
from search.storage.workers import Workers
from search.terminal.console import Console
from space.axes.architecture import Architecture
from space.counting.budget import Budget
from space.enumeration.enumeration import enumerate_space
from space.enumeration.hand_made import baselines
from space.verification.verification import verified_axis_map
from studies.benchmarks.figure import Figure
from studies.benchmarks.space import LLAMA_8B

#: The most that the engine may take of a trial, and of a demo's search.
_MS_A_TRIAL, _SHARE = 50.0, 0.02
#: The least that two workers finish in the time of one.
_TWO_WORKERS = 1.7


@dataclass(frozen=True)
class SearchWork:
    """How much is measured."""

    trials: tuple[int, ...] = (312, 125, 63)
    """At each rung of the search without models: 500 in all."""
    demo: tuple[str, ...] = ("--budget", "1M", "--basis", "weighted")
    """Flags of the search whose time is shared out."""
    workers: tuple[str, ...] = (
        *("--budget", "1M", "--basis", "weighted", "--objectives", "loss"),
        *("--trials", "24", "--rung-tokens", "12288", "--search-tokens", "250k"),
    )
    """Flags of the search that is done by one worker and by two, each of one thread."""
    repeats: int = 2
    teacher: LlamaConfig = field(default_factory=lambda: LLAMA_8B)
    """Of the search without models."""
    budget: int = 4_000_000_000
    """Of its students."""


def search_suite(work: SearchWork) -> list[Figure]:
    """Every figure of the suite."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return [_each_trial(work), _share_of_demo(work), _two_workers(work)]


class Timed:
    """An evaluator that adds up the time of the one within.

    Args:
        within: does the work.
    """

    def __init__(self, within: Evaluator) -> None:
        self.within, self.seconds = within, 0.0

    def evaluate(self, architecture: Architecture, rung: int, advance: Callable[[int], None]) -> Evaluation:
        """See ``Evaluator``."""
        began = time.perf_counter()
        try:
            return self.within.evaluate(architecture, rung, advance)
        finally:
            self.seconds += time.perf_counter() - began

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """See ``Evaluator``."""
        self.within.tidy(rungs, candidates)


class Instant:
    """An evaluator that takes no time: fewer layers are faster and worse."""

    def evaluate(self, architecture: Architecture, rung: int, advance: Callable[[int], None]) -> Evaluation:
        """Figures that every sampler can model."""
        a = architecture
        loss = 2 + 40 / a.hidden + 30 / a.mlp + 1 / a.heads + 2 / a.layers - 0.3 * rung
        return Evaluation({"loss": loss, "latency": 1.5 * a.layers + 0.01 * a.hidden}, 1000 * rung)

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """There is nothing to let go of."""


def _each_trial(work: SearchWork) -> Figure:
    axis_map = verified_axis_map(work.teacher)
    space = enumerate_space(axis_map, Budget(work.budget, 0.05))
    assert len(space) >= work.trials[0], "every trial is another architecture"
    config = replace(
        resolve(read_flags([*work.demo])).config,
        trials=work.trials[0],
        rung_tokens=tuple(1000 * 4**rung for rung in range(len(work.trials) - 1)),
        rung_candidates=work.trials[1:],
        search_tokens=0,
    )
    task, timed = SearchTask(config, space, baselines(space, axis_map.teacher)), Timed(Instant())
    with tempfile.TemporaryDirectory() as folder:
        seconds = _searched(task, timed, Path(folder)) - timed.seconds
    each = 1e3 * seconds / sum(work.trials)
    name = f"engine, ms a trial of {sum(work.trials)} on a journal, beside the bound"
    return Figure(name, each, _MS_A_TRIAL, _MS_A_TRIAL / each, 1.0)


def _task(resolved: Resolved) -> SearchTask:
    return SearchTask(resolved.config, resolved.space, baselines(resolved.space, resolved.axis_map.teacher))


def _share_of_demo(work: SearchWork) -> Figure:
    resolved = resolve(read_flags([*work.demo]))
    with tempfile.TemporaryDirectory() as folder:
        bench = _bench(resolved, Path(folder))
        timed = Timed(bench)
        whole = _searched(_task(resolved), timed, Path(folder))
    share = (whole - timed.seconds) / whole
    name = "engine, share of the search of a demo run, beside the bound"
    return Figure(name, share, _SHARE, _SHARE / share, 1.0)


def _bench(resolved: Resolved, folder: Path) -> DistillationEvaluator:
    console = Console(quiet=True)
    teacher, corpus = load(resolved.config, console)
    return DistillationEvaluator(prepare(resolved, teacher, corpus, RunDirectory(folder), console))


def _searched(task: SearchTask, evaluator: Evaluator, folder: Path) -> float:
    """Seconds of a search, opening its storage included."""
    began = time.perf_counter()
    workers = Workers(folder)
    with workers.present():
        rungs = open_rungs(task.config, task.space, folder, workers)
        Search(task, rungs, evaluator, Console(quiet=True), workers).run()
    return time.perf_counter() - began


def _two_workers(work: SearchWork) -> Figure:
    resolved = resolve(read_flags([*work.workers]))
    trials = sum((resolved.config.trials, *resolved.config.rung_candidates))
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        _bench(resolved, Path(folder))  # the artefacts that all workers share
        for turn in range(work.repeats):
            for number, found in rates.items():
                config = replace(resolved.config, storage=str(Path(folder) / f"{turn}-{number}.journal"))
                seconds = _together(number, replace(resolved, config=config), Path(folder))
                found.append(3600 * trials / seconds)
    one, two = median(rates[1]), median(rates[2])
    name = f"two workers of one thread, trials an hour ({trials} trials), beside one"
    return Figure(name, two, one, two / one, _TWO_WORKERS)


def _together(number: int, resolved: Resolved, folder: Path) -> float:
    """Seconds from the first worker's beginning of the search to the last one's end."""
    context = get_context("spawn")
    ready, times = context.Barrier(number), context.Queue()
    given = resolved, folder, ready, times
    workers = [context.Process(target=_worker, args=given) for _ in range(number)]
    for worker in workers:
        worker.start()
    spans = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    return float(max(end for _, end in spans) - min(begin for begin, _ in spans))


def _worker(resolved: Resolved, folder: Path, ready: Any, times: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    bench = _bench(resolved, folder)
    ready.wait()
    began = time.monotonic()
    _searched(_task(resolved), bench, folder)
    times.put((began, time.monotonic()))
