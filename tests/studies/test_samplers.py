"""The study of samplers: its problem has the answers that it says, and what is written was measured."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from optuna.storages import InMemoryStorage
from scipy.stats import kendalltau

from evaluators.metrics.synthetic import SyntheticProblem
from search.rungs.bracket import pareto_front
from search.rungs.loop import Search, SearchTask, rungs_in
from search.settings.flags import Flags
from search.settings.resolved import Resolved
from search.terminal.console import Console
from space.counting.counting import parameter_polynomial
from studies.samplers.__main__ import tables
from studies.samplers.evaluator import evaluator_of, true_front, true_objectives
from studies.samplers.hypervolume import hypervolume
from studies.samplers.setting import BIASES, PROMISED, SAMPLERS, SEEDS, config_of, resolved
from studies.samplers.work import HERE, RESULTS, searched

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12)


def problem(bias: float, noise: float = 0.0) -> SyntheticProblem:
    run = resolved()
    config = config_of("random", PROMISED, 0)
    count = parameter_polynomial(run.axis_map)
    return evaluator_of(config, run.axis_map.teacher, count, noise=noise, bias=bias).problem


def covered(points: list[tuple[int, int]]) -> int:
    """Unit squares of a ten by ten board that some point dominates, one by one."""
    return sum(any(x <= i and y <= j for x, y in points) for i, j in itertools.product(range(10), repeat=2))


@given(POINTS)
def test_the_hypervolume_is_the_number_of_squares_that_are_dominated(points: list[tuple[int, int]]) -> None:
    assert hypervolume(np.array(points, dtype=float), np.array([10.0, 10.0])) == covered(points)


@pytest.mark.parametrize(
    ("rungs", "bounds"), [("faithful", [(0.999, 1.0)] * 3), ("misleading", [(-1, 0), (0, 0.25), (0.4, 0.6)])]
)
def test_rungs_are_as_faithful_as_they_say(rungs: str, bounds: list[tuple[float, float]]) -> None:
    """Straight after pruning misleading rungs say less than nothing, and the more the longer they are."""
    one, config = problem(BIASES[rungs]), config_of("random", PROMISED, 0)
    end = one.losses(resolved().space.table, config.retrain_tokens)
    for tokens, (least, most) in zip((0, *config.rung_tokens), bounds, strict=True):
        tau = kendalltau(one.losses(resolved().space.table, tokens), end).statistic
        assert least <= tau <= most


def test_the_true_front_is_what_nobody_dominates() -> None:
    config = config_of("random", PROMISED, 0)
    objectives = true_objectives(problem(1.0), resolved().space, config)
    found = true_front(problem(1.0), resolved().space, config)
    assert found == pareto_front(objectives.tolist())
    for row, point in enumerate(objectives):
        beaten = any(dominates(other, point) for other in objectives)
        assert (row in found) != beaten


def dominates(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool((one <= other).all() and (one < other).any())


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(1, 10**8), st.integers(1, 10**8))
def test_losses_fall_with_tokens_and_never_below_the_floor(bias: float, few: int, more: int) -> None:
    one, table = problem(bias), resolved().space.table
    low, high = sorted((few, more))
    assert (one.losses(table, high) <= one.losses(table, low)).all()
    assert (one.losses(table, high) >= one.floors(table)).all()


def test_noise_is_as_large_as_it_says_and_the_same_again() -> None:
    one = problem(0.0, noise=0.1)
    drawn = [one.noise_of(a, rung) for a in resolved().space.architectures for rung in (0, 1)]
    assert drawn == [one.noise_of(a, rung) for a in resolved().space.architectures for rung in (0, 1)]
    assert statistics.stdev(drawn) == pytest.approx(0.1, rel=0.15)
    assert abs(statistics.mean(drawn)) < 0.02


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Resolved:
    """The run with a space of a fifth of the architectures."""
    run = resolved(0.01)
    for module in ("setting", "work"):
        monkeypatch.setattr(f"studies.samplers.{module}.resolved", lambda: run)
    return run


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
@pytest.mark.slow
def test_every_sampler_comes_to_the_whole_front_when_it_tries_everything(sampler: str, few: Resolved) -> None:
    assert 50 < len(few.space) < 100
    assert searched(sampler, len(few.space), 0, 0.0)["scored"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_every_sampler_does_so_in_the_whole_space(sampler: str) -> None:
    assert searched(sampler, len(resolved().space), 0, 0.0)["scored"] == 1.0


def test_the_default_keeps_what_is_promised_of_it() -> None:
    """At 60 evaluations 97% of the front, above random on faithful rungs, not below it on misleading ones."""
    default = Flags().sampler

    def mean(sampler: str, rungs: str) -> float:
        wanted = {"sampler": sampler, "rungs": rungs, "trials": PROMISED}
        some = [row["scored"] for row in RESULTS.rows() if wanted.items() <= row.items()]
        assert len(some) == len(SEEDS)
        return float(statistics.mean(some))

    assert mean(default, "faithful") >= 0.97
    assert mean(default, "faithful") > mean("random", "faithful")
    assert mean(default, "misleading") >= mean("random", "misleading")


def test_a_search_is_what_was_kept() -> None:
    for rungs, bias in BIASES.items():
        wanted = {"sampler": Flags().sampler, "rungs": rungs, "trials": PROMISED, "seed": 3}
        [row] = [row for row in RESULTS.rows() if wanted.items() <= row.items()]
        found = searched(Flags().sampler, PROMISED, 3, bias)
        assert found == {name: row[name] for name in found}


def test_the_results_are_those_of_the_file() -> None:
    assert (HERE / "RESULTS.md").read_text() == tables()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_where_rungs_are_faithful_and_exact_the_best_that_was_scored_comes_to_the_last(sampler: str) -> None:
    run, config = resolved(), config_of(sampler, PROMISED, 5)
    config = replace(config, objectives=("loss",))
    evaluator = evaluator_of(config, run.axis_map.teacher, parameter_polynomial(run.axis_map))
    rungs = rungs_in(InMemoryStorage(), config, run.space)
    Search(SearchTask(config, run.space, {}), rungs, evaluator, Console(quiet=True)).run()
    truth = true_objectives(evaluator.problem, run.space, config)[:, 0]
    rows = {architecture: row for row, architecture in enumerate(run.space.architectures)}
    scored, last = (
        min(truth[rows[record.architecture]] for record in rung.complete()) for rung in (rungs[0], rungs[-1])
    )
    assert scored == last
