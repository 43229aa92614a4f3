"""Who is retrained: the promoted, and if asked the baselines and the chosen one from random weights.

Every worker takes what nobody else is at, and waits for the rest at the end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from search.rungs.bracket import by_pareto_rank
from search.rungs.evaluation import RANDOM_WEIGHTS, SEARCH, Record, Retrained
from search.rungs.rung import Rung
from search.runs.choice import choose, eligible
from search.settings.config import RunConfig
from search.stages.branches import forget
from search.stages.retraining import Assignment, finished, retrain
from search.stages.workbench import Workbench
from search.storage.workers import Workers
from search.terminal.console import Console, clock
from space.enumeration.baselines import baselines

_POLL_SECONDS = 0.5


def retrain_all(
    bench: Workbench, rungs: Sequence[Rung], workers: Workers, console: Console
) -> tuple[list[Retrained], list[Retrained]]:
    """Retrain the promoted candidates; if asked, baselines and the chosen one from random weights too.

    Returns:
        The promoted, the lowest loss first, and the others.
    """
    chosen = promoted_of(rungs[-1].feasible(), bench.config)
    assignments = [
        Assignment(record.architecture, record.origin, number)
        for number, record in enumerate(chosen, start=1)
    ]
    if bench.config.retrain_baselines and (chosen or not rungs[-1].bounds):
        assignments += _baseline_assignments(bench, chosen)
    results = _retrained(bench, assignments, workers, console)
    promoted, others = results[: len(chosen)], results[len(chosen) :]
    best = choose(eligible(results, rungs)) if bench.config.retrain_baselines else None
    if best is not None:
        winner = next(r.architecture for r in results if r.label == best.label)
        others += _retrained(bench, [Assignment(winner, RANDOM_WEIGHTS, 0)], workers, console)
    return sorted(promoted, key=lambda r: (r.loss is None, r.loss)), others


def promoted_of(top: Sequence[Record], config: RunConfig) -> list[Record]:
    """Who of the last rung is retrained: by turns the lowest loss, and the first by Pareto rank and crowding.

    Crowding alone would spend its places on the ends of the front; the model that is chosen at last is one
    with a low loss, and whose is the lowest a rung only guesses (studies/exhaustive).
    """
    by_loss = by_pareto_rank(("loss",), top)
    by_rank = by_pareto_rank(config.objectives, top)
    turns = dict.fromkeys(itertools.chain.from_iterable(zip(by_loss, by_rank, strict=True)))
    return [top[place] for place in itertools.islice(turns, config.promote)]


def _baseline_assignments(bench: Workbench, promoted: Sequence[Record]) -> list[Assignment]:
    """The hand-made baselines; one that was promoted is retrained already and read from its result."""
    found = baselines(bench.space, bench.axis_map.teacher)
    return [
        Assignment(architecture, origin, len(promoted) + number)
        for number, (origin, architecture) in enumerate(found.items(), start=1)
    ]


def _retrained(
    bench: Workbench, assignments: Sequence[Assignment], workers: Workers, console: Console
) -> list[Retrained]:
    """The results of all, in order, whoever retrains each."""
    results: dict[int, Retrained] = {}
    while len(results) < len(assignments):
        before = len(results)
        for place, assignment in enumerate(assignments):
            if place in results:
                continue
            with workers.attempt(f"retraining-{assignment.key}") as free:
                if free:
                    results[place] = _retrain_one(bench, assignment, console)
        if len(results) == before:
            time.sleep(_POLL_SECONDS)
    return [results[place] for place in range(len(assignments))]


def _retrain_one(bench: Workbench, assignment: Assignment, console: Console) -> Retrained:
    tokens = bench.config.retrain_tokens
    if (result := finished(bench, assignment)) is not None:
        console.forecast.skip("retrain", tokens, pieces=1)
        forget(bench, assignment.architecture)
        return result
    with console.work(f"retraining {assignment.architecture.label}", "retrain", tokens) as advance:
        result = retrain(bench, assignment, advance)
    forget(bench, assignment.architecture)
    outcome = f"loss {result.loss:.4f}" if result.loss is not None else f"failed: {result.failure}"
    origin = "" if assignment.origin == SEARCH else f" ({assignment.origin})"
    console.say(f"retrained {result.label}{origin}: {outcome}   {clock(console.forecast.left())} left")
    return result
