"""A run from its first stage to its last; a stage whose output is there is skipped."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from evaluators.corpus.corpus import Corpus
from evaluators.metrics.energy import metered, spent
from evaluators.teacher import Teacher
from search.report import RankingView, write_report
from search.rungs.loop import Search, Task, open_rungs
from search.rungs.rung import Rung
from search.runs.summary import check, write
from search.settings.config import RunConfig
from search.settings.costs import by_hand
from search.settings.resolution import Resolved
from search.stages.account import Account, Looks, TeacherFigures
from search.stages.benchmarks import run_benchmarks
from search.stages.correction import Correction, corrected
from search.stages.inspection import inspect
from search.stages.model_card import write_cards
from search.stages.preparation import contestants, load, prepare
from search.stages.provenance import keep_provenance
from search.stages.retraining import retrain_all
from search.stages.targets import check_targets
from search.stages.trial import BenchEvaluator
from search.stages.workbench import Workbench
from search.storage.run_directory import RunDirectory, write_whole
from search.storage.storage import open_storage
from search.storage.workers import Workers
from search.terminal.console import Console, Forecast
from search.training.ranks import ranks
from search.training.training import Begin
from space.enumeration.hand_made import baselines


@dataclass(frozen=True)
class Run:
    """A run whose teacher is ranked and measured: what search and retraining go on from."""

    resolved: Resolved
    directory: RunDirectory
    console: Console
    command: str
    bench: Workbench
    teacher: TeacherFigures
    correction: Correction | None

    def rungs(self, workers: Workers) -> list[Rung]:
        """The studies of the rungs, to be worked on by this worker."""
        return open_rungs(self.bench.config, self.bench.space, self.directory.path, workers)


def run(resolved: Resolved, directory: RunDirectory, console: Console, command: str) -> dict[str, Any]:
    """Do everything that a run does, and return its summary."""
    with console.running():
        teacher, corpus = begin(resolved, directory, console)
        with at_work(resolved.config, directory) as workers:
            ready = rank_teacher(resolved, directory, console, command, teacher, corpus, workers)
            search_rungs(ready, workers)
            return retrain_promoted(ready, workers)


@contextmanager
def at_work(config: RunConfig, directory: RunDirectory) -> Iterator[Workers]:
    """Be one of the workers of a run, whose energy is counted."""
    with directory.joined(config) as workers, metered(directory.energy, config.device):
        yield workers


def begin(resolved: Resolved, directory: RunDirectory, console: Console) -> tuple[Teacher, Corpus]:
    """Refuse what cannot be, load the teacher and read the text; nothing is written yet.

    Raises:
        InputError: the run cannot be done, or the directory belongs to another.
    """
    config = resolved.config
    ranks().refuse_device(config.device)
    directory.refuse_another(config)
    if config.storage:  # one that cannot be reached is refused before anything is made
        open_storage(config.storage, directory.path)
    check_targets(resolved, directory)
    gc.freeze()  # the libraries stay for good; collecting among them costs each candidate half a second
    teacher, corpus = load(config, console)
    ranks().order(Begin(resolved, directory.path, corpus))
    return teacher, corpus


def rank_teacher(
    resolved: Resolved,
    directory: RunDirectory,
    console: Console,
    command: str,
    teacher: Teacher,
    corpus: Corpus,
    workers: Workers,
) -> Run:
    """The first stage: the teacher corrected if asked, its targets kept, its units ranked, all measured."""
    whole, config = corpus, resolved.config
    keep_provenance(teacher, config.data, directory.path)
    corpus = replace(corpus, distillation=corpus.distillation[: config.distillation_blocks])
    console.forecast = _forecast(resolved, corpus)
    with workers.patient("teacher", console.say):
        teacher, correction = corrected(config, teacher, whole, directory, console)
    bench = prepare(resolved, teacher, corpus, directory, console, workers)
    with workers.patient("figures", console.say):
        figures = _teacher_figures(bench, directory)
    console.say(
        f"teacher: loss {figures.loss:.4f} nats per token, {resolved.teacher_parameters:,} parameters"
    )
    return Run(resolved, directory, console, command, bench, figures, correction)


def search_rungs(run: Run, workers: Workers) -> None:
    """The second stage: candidates are tried on every rung, until all rungs are full."""
    resolved, bench = run.resolved, run.bench
    tries = by_hand(
        resolved.tries, bench.formulas, bench.space, resolved.limits, bench.config.most, bench.kept_layers
    )
    task = Task(bench.config, bench.space, baselines(bench.space, bench.axis_map.teacher), tries)
    with run.console.stage("search"):
        Search(task, run.rungs(workers), BenchEvaluator(bench), run.console, workers).run()


def retrain_promoted(run: Run, workers: Workers) -> dict[str, Any]:
    """The last stage: the best are trained to the end and written; the summary of the run is returned."""
    bench, console, directory = run.bench, run.console, run.directory
    rungs = run.rungs(workers)
    with console.stage("retraining"):
        promoted, others = retrain_all(bench, rungs, workers, console)
    with workers.patient("summary", console.say):
        with console.stage("benchmarks") if bench.config.benchmarks else nullcontext():
            results = run_benchmarks(bench, [*promoted, *others], directory, console)
        with console.stage("inspection"):
            inspection = inspect(bench, [*promoted, *others], directory, console)
        seconds = _accumulated(directory, console.stage_seconds)
        looks = Looks(results, inspection, spent(directory.energy))
        account = Account(
            bench, rungs, run.teacher, promoted, others, looks, run.correction, seconds, run.command
        )
        return _told(account, directory)


def _told(account: Account, directory: RunDirectory) -> dict[str, Any]:
    """Write down what a run came to; several workers do it in turn, the last with the time of all."""
    summary = account.summary()
    check(summary)
    write_cards(summary, directory.path)
    write_report(summary, RankingView.of(account.bench.ranking), directory.report)
    write(directory.summary, summary)
    return summary


def _forecast(resolved: Resolved, corpus: Corpus) -> Forecast:
    """Tokens of each kind of work, and the trainings that they are made of, for the time left."""
    config, tried = resolved.config, len(contestants(resolved))
    rungs = zip(config.rung_tokens, config.rung_candidates, strict=True)
    tokens = {
        "correct": config.teacher_correction,
        "forward": corpus.calibration.numel() + corpus.distillation.numel(),
        "score": config.trials * config.validation_blocks * config.block,
        "distil": sum(tokens * candidates for tokens, candidates in rungs) + config.rung_tokens[0] * tried,
        "retrain": resolved.retrainings * config.retrain_tokens,
    }
    pieces = {
        "score": config.trials,
        "distil": sum(config.rung_candidates) + tried,
        "retrain": resolved.retrainings,
    }
    return Forecast(tokens, pieces)


def _teacher_figures(bench: Workbench, directory: RunDirectory) -> TeacherFigures:
    """Loss and latency of the teacher, measured once a run."""
    if directory.teacher.exists():
        return TeacherFigures(**json.loads(directory.teacher.read_text()))
    latency = bench.latency(bench.teacher.model).total_ms if bench.config.measures_latency else None
    figures = TeacherFigures(bench.exact_loss(bench.teacher.model), latency)
    write_whole(directory.teacher, json.dumps(vars(figures)))
    return figures


def _accumulated(directory: RunDirectory, seconds: dict[str, float]) -> dict[str, float]:
    """The stages' times, those of earlier processes included."""
    before: dict[str, float] = json.loads(directory.seconds.read_text()) if directory.seconds.exists() else {}
    total = {name: round(before.get(name, 0.0) + seconds.get(name, 0.0), 1) for name in {**before, **seconds}}
    write_whole(directory.seconds, json.dumps(total))
    return total
