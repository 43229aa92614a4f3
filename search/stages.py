"""A run from its first stage to its last; a stage whose output is there is skipped."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from evaluators.corpus.corpus import Corpus
from evaluators.teacher import Teacher
from search.account import Account, TeacherFigures
from search.bases import contestants
from search.benchmarks import run_benchmarks
from search.branches import forget
from search.choice import choose
from search.console import Console, clock
from search.correction import corrected
from search.loop import Search, open_rungs
from search.model_card import model_card
from search.preparation import load, prepare
from search.promotion import best_first
from search.report import RankingView, write_report
from search.resolution import Resolved
from search.retraining import RANDOM_WEIGHTS, Assignment, Retrained, finished, retrain
from search.run_directory import RunDirectory
from search.rung import SEARCH, Record, Rung
from search.storage import open_storage
from search.summary import check, write
from search.targets import check_targets
from search.whole_file import write_whole
from search.workbench import Workbench
from space.architecture import Axis
from space.baselines import baselines
from space.ranking import Ranking


def run(resolved: Resolved, directory: RunDirectory, console: Console, command: str) -> dict[str, Any]:
    """Do everything that a run does, and return its summary."""
    config = resolved.config
    directory.refuse_another(config)
    if config.storage:  # one that cannot be reached is refused before anything is made
        open_storage(config.storage, directory.path)
    check_targets(resolved, directory)
    gc.freeze()  # the libraries stay for good; collecting among them costs each candidate half a second
    with console.running():
        teacher, corpus = load(config, console)
        with directory.claimed(config):
            return _run(resolved, teacher, corpus, directory, console, command)


def _run(
    resolved: Resolved,
    teacher: Teacher,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    command: str,
) -> dict[str, Any]:
    whole, config = corpus, resolved.config
    corpus = replace(corpus, distillation=corpus.distillation[: config.distillation_blocks])
    console.forecast.planned.update(_planned(resolved, corpus))
    teacher, correction = corrected(config, teacher, whole, directory, console)
    bench = prepare(resolved, teacher, corpus, directory, console)
    rungs = open_rungs(config, bench.space, directory.path)
    figures = _teacher_figures(bench, directory)
    console.say(
        f"teacher: loss {figures.loss:.4f} nats per token, {resolved.teacher_parameters:,} parameters"
    )
    with console.stage("search"):
        Search(bench, rungs, console).run()
    with console.stage("retraining"):
        promoted, others = _retrain_all(bench, rungs, console)
    with console.stage("benchmarks") if config.benchmarks else nullcontext():
        results = run_benchmarks(bench, [*promoted, *others], directory, console)
    seconds = _accumulated(directory, console.stage_seconds)
    account = Account(bench, rungs, figures, promoted, others, results, correction, seconds, command)
    summary = account.summary()
    check(summary)
    _write_cards(bench, summary, directory)
    write_report(summary, _view(bench.ranking), directory.report)
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
    latency = bench.latency(bench.teacher.model).total_ms if "latency" in bench.config.objectives else None
    figures = TeacherFigures(bench.exact_loss(bench.teacher.model), latency)
    write_whole(directory.teacher, json.dumps(vars(figures)))
    return figures


def _retrain_all(
    bench: Workbench, rungs: Sequence[Rung], console: Console
) -> tuple[list[Retrained], list[Retrained]]:
    """Retrain the promoted candidates; if asked, baselines and the chosen one from random weights too."""
    top = rungs[-1].complete()
    order = best_first([record.values(bench.config.objectives) for record in top])
    chosen = [top[place] for place in order[: bench.config.promote]]
    promoted = [
        _retrain_one(bench, Assignment(record.architecture, record.origin, number), console)
        for number, record in enumerate(chosen, start=1)
    ]
    others = []
    if bench.config.retrain_baselines:
        for assignment in _baseline_assignments(bench, chosen):
            others.append(_retrain_one(bench, assignment, console))
        best = choose([*promoted, *others])
        if best is not None:
            winner = next(r.architecture for r in (*promoted, *others) if r.label == best.label)
            others.append(_retrain_one(bench, Assignment(winner, RANDOM_WEIGHTS, 0), console))
    ranked = sorted(promoted, key=lambda r: (r.loss is None, r.loss))
    return ranked, others


def _baseline_assignments(bench: Workbench, promoted: Sequence[Record]) -> list[Assignment]:
    """The hand-made baselines; one that was promoted is retrained already and read from its result."""
    found = baselines(bench.space, bench.axis_map.teacher)
    return [
        Assignment(architecture, origin, len(promoted) + number)
        for number, (origin, architecture) in enumerate(found.items(), start=1)
    ]


def _retrain_one(bench: Workbench, assignment: Assignment, console: Console) -> Retrained:
    tokens = bench.config.retrain_tokens
    if (result := finished(bench, assignment)) is not None:
        console.forecast.skip("retrain", tokens)
        forget(bench, assignment.architecture)
        return result
    with console.work(f"retraining {assignment.architecture.label}", "retrain", tokens) as advance:
        result = retrain(bench, assignment, advance)
    forget(bench, assignment.architecture)
    outcome = f"loss {result.loss:.4f}" if result.loss is not None else f"failed: {result.failure}"
    origin = "" if assignment.origin == SEARCH else f" ({assignment.origin})"
    console.say(f"retrained {result.label}{origin}: {outcome}   {clock(console.forecast.left())} left")
    return result


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
