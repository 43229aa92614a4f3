"""A nested search: candidates enter a rung together, train before any is scored, and are never left out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from search.rungs.loop import Search, SearchTask
from search.rungs.rung import Rung
from search.settings.config import RunConfig
from search.terminal.console import Console
from space.enumeration.hand_made import baselines
from tests.search.synthetic import Evaluator, demo_map, demo_space, open_rungs_in, records_of, run_config


def config_of(*candidates: int, trials: int = 16) -> RunConfig:
    tokens = tuple(1000 * stage for stage in range(1, len(candidates) + 1))
    return run_config(
        search="nested", sampler="random", trials=trials, rung_tokens=tokens, rung_candidates=candidates
    )


class Watched:
    """What is prepared, and who has entered and who was asked by then."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.prepared: dict[int, set[str]] = {}

    def prepare(self, rungs: Sequence[Rung], index: int) -> None:
        if index not in self.prepared:
            assert all(rung != index or not index for rung, _ in self.evaluator.asked), (
                "scored before trained"
            )
            self.prepared[index] = {one.label for one in rungs[index].entered()}


def searched(config: RunConfig, evaluator: Evaluator) -> tuple[list[Rung], Watched]:
    rungs, watched = open_rungs_in(InMemoryStorage(), config, demo_space()), Watched(evaluator)
    task = SearchTask(config, demo_space(), baselines(demo_space(), demo_map().teacher))
    Search(task, rungs, evaluator, Console(quiet=True), prepare=watched.prepare).run()
    return rungs, watched


def test_a_rung_is_prepared_once_with_all_who_are_scored_there() -> None:
    rungs, watched = searched(config_of(12, 6, 3), Evaluator())
    assert [rung.count() for rung in rungs] == [16, 12, 6, 3]
    for rung in rungs[1:]:
        assert watched.prepared[rung.index] == {record.label for record in rung.complete()}


def test_hand_made_baselines_are_in_the_pool_from_the_start() -> None:
    _, watched = searched(config_of(6, 3), Evaluator())
    by_hand = {one.label for one in baselines(demo_space(), demo_map().teacher).values()}
    assert by_hand <= watched.prepared[1]


def test_the_best_of_a_rung_go_on() -> None:
    rungs, _ = searched(config_of(12, 4), Evaluator())
    first = sorted(rungs[1].complete(), key=lambda record: record.values(("loss",)))
    assert first[0].architecture in rungs[2].entered()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16))
def test_failures_stop_nobody(lot: int) -> None:
    """Whoever fails at whatever rung, the search ends, and who is left is scored."""
    evaluator = Evaluator(
        lambda architecture, rung: bool(lot >> (crc32(architecture.label.encode()) + rung) % 16 & 1)
    )
    rungs, _ = searched(config_of(8, 4, 2), evaluator)
    assert not any(rung.has_unfinished() for rung in rungs)
    for below, above in pairwise(rungs):
        assert above.entered() <= {record.architecture for record in below.feasible()}


def test_stopped_anywhere_it_asks_for_nothing_twice() -> None:
    config, calm = config_of(8, 4, 2), Evaluator()
    whole, _ = searched(config, calm)
    wanted = [(record.rung, record.label, record.evaluation) for record in records_of(whole)]
    for stop in (3, 17, 22, 27):
        storage, asked = InMemoryStorage(), []
        for evaluator in (Evaluator(stop_at=stop), Evaluator()):
            rungs = open_rungs_in(storage, config, demo_space())
            task = SearchTask(config, demo_space(), baselines(demo_space(), demo_map().teacher))
            try:
                Search(task, rungs, evaluator, Console(quiet=True)).run()
            except KeyboardInterrupt:
                assert evaluator.stop_at == stop
            asked += evaluator.asked
        assert len(asked) == len(set(asked))
        assert [(record.rung, record.label, record.evaluation) for record in records_of(rungs)] == wanted
