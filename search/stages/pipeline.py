"""The pipeline of a run, from its first stage to its last; a stage whose output exists is skipped."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.optimizers import OptimizerName
from evaluators.metrics.energy import energy_meter, energy_spent
from evaluators.teacher import Teacher
from search.report import RankingView, write_report
from search.rungs.loop import Search, SearchTask, open_rungs
from search.rungs.rung import Rung
from search.runs.summary import check, write
from search.settings.config import NESTED, RunConfig
from search.settings.costs import tried_architectures
from search.settings.hours import saved_config, with_saved_amounts
from search.settings.ledger import cap_device_memory, run_ledger
from search.settings.memory_table import memory_lines
from search.settings.optimizer import check_installed
from search.settings.rates import tokens_each
from search.settings.resolved import Resolved
from search.stages.benchmarks import run_benchmarks
from search.stages.correction import Correction, correct_if_asked
from search.stages.inspection import inspect
from search.stages.layer_by_layer import check_layer_by_layer
from search.stages.model_card import write_cards
from search.stages.nested import NestedEvaluator, check_nested_tries, nested_path, trained_weights
from search.stages.preparation import basis_candidates, load, prepare
from search.stages.provenance import save_provenance
from search.stages.retraining import retrain_all
from search.stages.run_context import RunContext
from search.stages.sorted_weights import check_sorted_weights
from search.stages.summary_builder import FinalMeasurements, SummaryBuilder, TeacherFigures
from search.stages.targets import check_targets
from search.stages.trial import DistillationEvaluator
from search.storage.run_directory import RunDirectory, atomic_write
from search.storage.storage import open_storage
from search.storage.workers import Workers
from search.terminal.console import Console, TimeForecast
from search.training.process_group import run_processes
from search.training.training import Begin
from space.enumeration.hand_made import baselines


@dataclass(frozen=True)
class Run:
    """A run whose teacher is ranked and measured: the input of search and retraining."""

    resolved: Resolved
    directory: RunDirectory
    console: Console
    command: str
    context: RunContext
    teacher: TeacherFigures
    correction: Correction | None

    def rungs(self, workers: Workers) -> list[Rung]:
        """Open the studies of the rungs for this worker."""
        return open_rungs(self.context.config, self.context.space, self.directory.path, workers)


def run(resolved: Resolved, directory: RunDirectory, console: Console, command: str) -> dict[str, Any]:
    """Execute all stages of a run, and return its summary."""
    with console.running():
        resolved, teacher, corpus = begin_or_join(resolved, directory, console)
        with at_work(resolved.config, directory) as workers:
            ranked = rank_teacher(resolved, directory, console, command, teacher, corpus, workers)
            search_rungs(ranked, workers)
            return retrain_promoted(ranked, workers)


def begin_or_join(
    resolved: Resolved, directory: RunDirectory, console: Console
) -> tuple[Resolved, Teacher, Corpus]:
    """Begin a run as ``begin`` does, with the amounts of a worker that began it at the same time.

    Amounts that follow from hours differ between workers, since each measures the pace for itself.
    """
    teacher, corpus = begin(resolved, directory, console)
    begun = _as_begun(resolved, directory)
    if begun.config != resolved.config:
        teacher, corpus = begin(begun, directory, console)
    return begun, teacher, corpus


def _as_begun(resolved: Resolved, directory: RunDirectory) -> Resolved:
    if not resolved.config.hours:
        return resolved
    directory.claim(resolved.config)
    before = saved_config(directory.config)
    if before is None or before.hours != resolved.config.hours:
        return resolved
    return resolved.with_amounts(with_saved_amounts(resolved.config, before, resolved.given))


@contextmanager
def at_work(config: RunConfig, directory: RunDirectory) -> Iterator[Workers]:
    """Register this process as a worker of the run, and meter its energy."""
    with directory.joined(config) as workers, energy_meter(directory.energy, config.device):
        yield workers


def begin(resolved: Resolved, directory: RunDirectory, console: Console) -> tuple[Teacher, Corpus]:
    """Check that the run is possible, load the teacher and read the text; nothing is written yet.

    Raises:
        InputError: the run is impossible, or the directory belongs to another run.
    """
    config = resolved.config
    run_processes().check_device(config.device)
    directory.refuse_another(config)
    check_layer_by_layer(resolved)
    if config.storage:  # fail now if it cannot be reached, before any work
        open_storage(config.storage, directory.path)
    check_targets(resolved, directory)
    check_nested_tries(resolved, directory)
    check_installed(OptimizerName(resolved.config.optimizer))
    cap_device_memory(resolved)
    for line in memory_lines(run_ledger(resolved, directory.path)):
        console.say(line)
    gc.freeze()  # libraries are never freed; scanning them costs each candidate half a second
    check_sorted_weights(resolved, directory)
    teacher, corpus = load(config, console, resolved.placement)
    run_processes().send_command(Begin(resolved, directory.path, corpus))
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
    """Run the first stage: correct the teacher if configured, cache its targets, rank and measure it."""
    full_corpus, config = corpus, resolved.config
    save_provenance(teacher, config.data, corpus.layout, directory.path)
    corpus = corpus.shortened(config.distillation_blocks)
    console.forecast = _forecast(resolved, corpus)
    with workers.exclusive_or_wait("teacher", console.say):
        teacher, correction = correct_if_asked(
            config, teacher, full_corpus, directory, console, resolved.placement
        )
    context = prepare(resolved, teacher, corpus, directory, console, workers)
    with workers.exclusive_or_wait("figures", console.say):
        figures = _teacher_figures(context, directory, console)
    console.say(
        f"teacher: loss {figures.loss:.4f} nats per token, {resolved.teacher_parameters:,} parameters"
    )
    return Run(resolved, directory, console, command, context, figures, correction)


def search_rungs(run: Run, workers: Workers) -> None:
    """Run the second stage: evaluate candidates until every rung is full."""
    resolved, context = run.resolved, run.context
    tries = tried_architectures(
        resolved.tries,
        context.formulas,
        context.space,
        resolved.limits,
        context.config.upper_bounds,
        context.kept_layers,
    )
    task = SearchTask(
        context.config, context.space, baselines(context.space, context.axis_map.teacher), tries
    )
    with run.console.stage("search"):
        rungs = run.rungs(workers)
        if context.config.search == NESTED:
            nested = NestedEvaluator(context, workers, run.console)
            Search(task, rungs, nested, run.console, workers, nested.prepare).run()
        else:
            Search(task, rungs, DistillationEvaluator(context), run.console, workers).run()


def retrain_promoted(run: Run, workers: Workers) -> dict[str, Any]:
    """Run the last stage: retrain and write the best models; return the summary of the run."""
    context, console, directory = run.context, run.console, run.directory
    if nested_path(directory.path).exists():
        context = replace(context, shared=trained_weights(context))
    rungs = run.rungs(workers)
    with console.stage("retraining"):
        promoted, others = retrain_all(context, rungs, workers, console)
    with workers.exclusive_or_wait("summary", console.say):
        with console.stage("benchmarks") if context.config.benchmarks else nullcontext():
            results = run_benchmarks(context, [*promoted, *others], directory, console)
        with console.stage("inspection"):
            inspection = inspect(context, [*promoted, *others], directory, console)
        seconds = _accumulated(directory, console.stage_seconds)
        final = FinalMeasurements(results, inspection, energy_spent(directory.energy))
        builder = SummaryBuilder(
            context, rungs, run.teacher, promoted, others, final, run.correction, seconds, run.command
        )
        summary = _write_results(builder, directory)
        context.sorted_weights.remove()
        nested_path(directory.path).unlink(missing_ok=True)
        return summary


def _write_results(builder: SummaryBuilder, directory: RunDirectory) -> dict[str, Any]:
    """Write the results of a run. Each worker does so in turn; the last has the time of all."""
    summary = builder.summary()
    check(summary)
    write_cards(summary, directory.path)
    write_report(summary, RankingView.of(builder.context.ranking), directory.report)
    write(directory.summary, summary)
    return summary


def _forecast(resolved: Resolved, corpus: Corpus) -> TimeForecast:
    """Count the tokens and pieces (candidates, trainings) of each kind of work, to forecast the time left."""
    config, tried = resolved.config, len(basis_candidates(resolved))
    tokens = {
        "correct": config.teacher_correction,
        "forward": resolved.ranking_tokens + corpus.distillation.numel() + corpus.validation.numel(),
        "score": config.trials * config.validation_blocks * config.block,
        "distil": config.spent_tokens + config.trial_tokens * tried + resolved.finding_tokens,
        "retrain": resolved.retraining_tokens,
    }
    pieces = {
        "score": config.trials,
        "distil": sum(config.rung_candidates) + tried + resolved.finding_tokens // tokens_each(config),
        "retrain": sum(resolved.retrainings),
    }
    return TimeForecast(tokens, pieces)


def _teacher_figures(context: RunContext, directory: RunDirectory, console: Console) -> TeacherFigures:
    """Loss and latency of the teacher, measured once per run."""
    tokens = context.corpus.validation.numel()
    if directory.teacher.exists():
        console.forecast.skip("forward", tokens)
        return TeacherFigures(**json.loads(directory.teacher.read_text()))
    with console.work("measuring the teacher", "forward", tokens) as advance:
        figures = _measured(context, advance)
    atomic_write(directory.teacher, json.dumps(vars(figures)))
    return figures


def _measured(context: RunContext, advance: Callable[[int], None]) -> TeacherFigures:
    if context.placement.layer_by_layer:
        return TeacherFigures(context.loss_from_disk(advance), None)
    with context.teacher.on_device():
        model = context.teacher.model
        loss = context.exact_loss(model, advance)
        latency = context.latency(model).total_ms if context.config.measures_latency else None
        tasks = context.tasks.measure(model, f"teacher {context.teacher.fingerprint}")
        return TeacherFigures(loss, latency, *tasks)


def _accumulated(directory: RunDirectory, seconds: dict[str, float]) -> dict[str, float]:
    """Add this process's seconds per stage to those of earlier processes, and save the sums."""
    before: dict[str, float] = json.loads(directory.seconds.read_text()) if directory.seconds.exists() else {}
    total = {name: round(before.get(name, 0.0) + seconds.get(name, 0.0), 1) for name in {**before, **seconds}}
    atomic_write(directory.seconds, json.dumps(total))
    return total
