"""A run from its first stage to its last; a stage whose output is there is skipped."""

from __future__ import annotations

import gc
import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from evaluators.corpus.corpus import Corpus
from evaluators.teacher import Teacher
from search.account import Account, Looks, TeacherFigures
from search.bases import contestants
from search.benchmarks import run_benchmarks
from search.by_hand import by_hand
from search.console import Console
from search.correction import corrected
from search.energy import metered, spent
from search.finalists import retrain_all
from search.inspection import inspect
from search.loop import Search, Task, open_rungs
from search.model_card import model_card
from search.orders import Begin
from search.preparation import load, prepare
from search.ranks import ranks
from search.report import RankingView, write_report
from search.resolution import Resolved
from search.run_directory import RunDirectory
from search.storage import open_storage
from search.summary import check, write
from search.targets import check_targets
from search.trial import BenchEvaluator
from search.whole_file import write_whole
from search.workbench import Workbench
from search.workers import Workers
from space.architecture import Axis
from space.baselines import baselines
from space.ranking import Ranking


def run(resolved: Resolved, directory: RunDirectory, console: Console, command: str) -> dict[str, Any]:
    """Do everything that a run does, and return its summary."""
    config = resolved.config
    ranks().refuse_device(config.device)
    directory.refuse_another(config)
    if config.storage:  # one that cannot be reached is refused before anything is made
        open_storage(config.storage, directory.path)
    check_targets(resolved, directory)
    gc.freeze()  # the libraries stay for good; collecting among them costs each candidate half a second
    with console.running():
        teacher, corpus = load(config, console)
        ranks().order(Begin(resolved, directory.path, corpus))
        with directory.joined(config) as workers, metered(directory.energy, config.device):
            return _run(resolved, teacher, corpus, directory, console, workers, command)


def _run(
    resolved: Resolved,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    workers: Workers,
    command: str,
) -> dict[str, Any]:
    whole, config = corpus, resolved.config
    corpus = replace(corpus, distillation=corpus.distillation[: config.distillation_blocks])
    console.forecast.planned.update(_planned(resolved, corpus))
    with workers.patient("teacher", console.say):
        teacher, correction = corrected(config, teacher, whole, directory, console)
    bench = prepare(resolved, teacher, corpus, directory, console, workers)
    rungs = open_rungs(config, bench.space, directory.path, workers)
    with workers.patient("figures", console.say):
        figures = _teacher_figures(bench, directory)
    console.say(
        f"teacher: loss {figures.loss:.4f} nats per token, {resolved.teacher_parameters:,} parameters"
    )
    tries = by_hand(
        resolved.tries, bench.formulas, bench.space, resolved.limits, config.most, bench.kept_layers
    )
    task = Task(config, bench.space, baselines(bench.space, bench.axis_map.teacher), tries)
    with console.stage("search"):
        Search(task, rungs, BenchEvaluator(bench), console, workers).run()
    with console.stage("retraining"):
        promoted, others = retrain_all(bench, rungs, workers, console)
    with workers.patient("summary", console.say):
        with console.stage("benchmarks") if config.benchmarks else nullcontext():
            results = run_benchmarks(bench, [*promoted, *others], directory, console)
        with console.stage("inspection"):
            inspection = inspect(bench, [*promoted, *others], directory, console)
        seconds = _accumulated(directory, console.stage_seconds)
        looks = Looks(results, inspection, spent(directory.energy))
        account = Account(bench, rungs, figures, promoted, others, looks, correction, seconds, command)
        return _told(account, directory)


def _told(account: Account, directory: RunDirectory) -> dict[str, Any]:
    """Write down what a run came to; several workers do it in turn, the last with the time of all."""
    summary = account.summary()
    check(summary)
    _write_cards(account.bench, summary, directory)
    write_report(summary, _view(account.bench.ranking), directory.report)
    write(directory.summary, summary)
    return summary


def _view(ranking: Ranking) -> RankingView:
    layers = ranking.scores[Axis.LAYERS].tolist()
    return RankingView(ranking.shown(), layers, ranking.method, turned=ranking.basis is not None)


def _planned(resolved: Resolved, corpus: Corpus) -> dict[str, int]:
    """Tokens of each kind of work, for the time left."""
    config = resolved.config
    targets = corpus.distillation.numel()
    rungs = zip(config.rung_tokens, config.rung_candidates, strict=True)
    return {
        "correct": config.teacher_correction,
        "forward": corpus.calibration.numel() + targets,
        "score": config.trials * config.validation_blocks * config.block,
        "distil": sum(tokens * candidates for tokens, candidates in rungs)
        + config.rung_tokens[0] * len(contestants(resolved)),
        "retrain": resolved.retrainings * config.retrain_tokens,
    }


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


def _write_cards(bench: Workbench, summary: dict[str, Any], directory: RunDirectory) -> None:
    for entry in (*summary["promoted"], *summary["baselines"]):
        if entry["path"]:
            card = model_card(summary, entry["label"], licence=None, origin=entry["origin"])
            write_whole(directory.path / entry["path"] / "README.md", card)
