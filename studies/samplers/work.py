"""The searches of the study: every sampler, on faithful and on misleading rungs, for every seed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage

from search.rungs.loop import Search, SearchTask, rungs_in
from search.terminal.console import Console
from space.counting.counting import parameter_polynomial
from space.enumeration.hand_made import baselines
from studies.bench.results import Results, Row
from studies.samplers.evaluator import evaluator_of, true_objectives
from studies.samplers.hypervolume import hypervolume
from studies.samplers.setting import BIASES, NOISE, PROMISED, SAMPLERS, SEEDS, TRIALS, config_of, resolved

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("rungs", "sampler", "trials", "seed"))


def asked(rungs: str) -> Iterator[Row]:
    """Every search on one kind of rungs."""
    for trials in TRIALS:
        for sampler in SAMPLERS:
            if sampler == "gp" and trials > PROMISED:
                continue  # it takes a quarter of a minute for each search by then
            for seed in SEEDS:
                yield {"rungs": rungs, "sampler": sampler, "trials": trials, "seed": seed}


def work(rungs: str) -> None:
    """Search what is missing."""
    for about in RESULTS.missing(asked(rungs)):
        row = {**about, **searched(about["sampler"], about["trials"], about["seed"], BIASES[rungs])}
        RESULTS.add(row)
        print(row, file=sys.stderr, flush=True)


def searched(sampler: str, trials: int, seed: int, bias: float) -> dict[str, Any]:
    """One search, and what it found by the true objectives, free of noise.

    Returns:
        Hypervolume as a share of the true front's, of all that were scored, of those that were distilled,
        and of those at the last rung; the reference is the worst of the space in each objective.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config, run = config_of(sampler, trials, seed), resolved()
    teacher, count = run.axis_map.teacher, parameter_polynomial(run.axis_map)
    evaluator = evaluator_of(config, teacher, count, noise=NOISE, bias=bias)
    rungs = rungs_in(InMemoryStorage(), config, run.space)
    Search(
        SearchTask(config, run.space, baselines(run.space, teacher)), rungs, evaluator, Console(quiet=True)
    ).run()
    truth = true_objectives(evaluator.problem, run.space, config)
    reference = truth.max(0)
    whole = hypervolume(truth, reference)
    rows = {architecture: row for row, architecture in enumerate(run.space.architectures)}
    found = {}
    for lowest, name in enumerate(("scored", "distilled", "last")):
        some = [rows[record.architecture] for rung in rungs[lowest:] for record in rung.complete()]
        found[name] = round(hypervolume(truth[np.array(some)], reference) / whole, 5)
    return found
