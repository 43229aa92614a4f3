"""The benchmark of the search at toy size: what it times, and what it does not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from search.rungs.evaluation import CandidateError
from studies.benchmarks import search as benchmark
from studies.benchmarks.__main__ import SUITES
from studies.benchmarks.search import Instant, SearchWork, Timed, search_suite
from tests.search.synthetic import demo_space
from tests.space.models import SMALL

ARCHITECTURE = demo_space().architectures[0]


class Slow(Instant):
    """Takes a tenth of a second, and fails at rung 1."""

    def evaluate(self, architecture: Any, rung: int, advance: Any) -> Any:
        time.sleep(0.1)
        if rung:
            raise CandidateError("no luck")
        return super().evaluate(architecture, rung, advance)


def test_the_time_of_evaluations_is_added_up_failures_included() -> None:
    timed = Timed(Slow())
    assert timed.evaluate(ARCHITECTURE, 0, lambda tokens: None).values["loss"] > 2
    with pytest.raises(CandidateError):
        timed.evaluate(ARCHITECTURE, 1, lambda tokens: None)
    assert 0.2 <= timed.seconds < 0.5


def test_every_trial_counts_and_models_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    work = SearchWork(trials=(6, 3, 2), teacher=SMALL, budget=10_000)
    monkeypatch.setattr(benchmark, "Instant", Slow)
    figure = benchmark._each_trial(work)
    assert figure.name == "engine, ms a trial of 11 on a journal, beside the bound"
    assert 0 < figure.ours < 100, "a tenth of a second of evaluation is none of it"
    assert figure.ratio == pytest.approx(50 / figure.ours)


def test_the_suite_has_a_figure_for_each_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bench(Instant):
        """In place of models."""

        def __init__(self, folder: Path) -> None:
            self.folder = folder

    monkeypatch.setattr(benchmark, "_bench", lambda resolved, folder: Bench(folder))
    monkeypatch.setattr(benchmark, "_together", lambda number, resolved, folder: 12.0 / number)
    each, share, workers = search_suite(SearchWork(trials=(6, 3, 2), teacher=SMALL, budget=10_000))
    assert each.bound == share.bound == 1.0
    assert share.ours > 0.5, "where models take no time the engine takes all"
    assert not share.holds
    assert (workers.ratio, workers.bound) == (2.0, 1.7)
    assert "search" in SUITES
