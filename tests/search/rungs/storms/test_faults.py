"""Candidates that cannot be evaluated, each in its way, and a disk that is full at any write."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.rungs.evaluation import CandidateError, Evaluation
from search.rungs.loop import open_rungs
from search.storage.journal import Journal
from search.storage.workers import Workers
from space.axes.architecture import Architecture
from tests.search.synthetic import Evaluator, demo_space, evaluation, make_search, records_of, run_config

CONFIG = run_config(trials=12, rung_candidates=(6, 3))
MORE = run_config(trials=24, rung_candidates=(6, 3))


class Faulty(Evaluator):
    """Some candidates never come to an end."""

    def evaluate(self, architecture: Architecture, rung: int, advance: Callable[[int], None]) -> Evaluation:
        found = super().evaluate(architecture, rung, advance)
        if architecture.layers == 8:
            raise CandidateError("out of memory: 2 GiB were asked")
        if architecture.layers == 7:
            raise CandidateError("diverged: the validation loss is nan")
        if architecture.layers == 6:
            time.sleep(60)
        return found


def test_out_of_memory_no_number_and_hanging_are_recorded_with_their_reasons(
    quick_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.rungs.claims.LONGEST_SECONDS", 0.3)
    monkeypatch.setattr("search.rungs.claims.SHORTEST_SECONDS", 0.3)
    evaluator = Faulty()
    rungs = open_rungs(MORE, demo_space(), quick_disk)
    began = time.monotonic()
    make_search(MORE, demo_space(), rungs, evaluator).run()
    assert time.monotonic() - began < 30
    records = records_of(rungs)
    assert len(rungs[0].records()) == 24
    reasons = {
        8: "out of memory: 2 GiB were asked",
        7: "diverged: the validation loss is nan",
        6: "hung past its limit of 0 s",
    }
    assert {r.architecture.layers for r in records} >= reasons.keys()
    for record in records:
        assert record.failure == reasons.get(record.architecture.layers)
        if record.evaluation is not None:
            assert record.evaluation == evaluation(record.architecture, record.rung)
    assert max(Counter(evaluator.asked).values()) == 1, "nobody is tried twice"


def test_a_worker_that_hangs_for_good_loses_its_candidate_to_the_others(
    quick_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives and its alarm never came, as in a call that does not return."""
    monkeypatch.setattr("search.rungs.claims.LONGEST_SECONDS", 0.0)
    monkeypatch.setattr("search.rungs.claims.GRACE_SECONDS", 0.05)
    stuck, other = Workers(quick_disk), Workers(quick_disk)
    with stuck.present(), other.present():
        rungs = open_rungs(CONFIG, demo_space(), quick_disk, stuck)
        [*_, job] = [make_search(CONFIG, demo_space(), rungs, workers=stuck)._next()]
        assert job is not None
        rungs[0].enter(job[2], "search")
        monkeypatch.setattr("search.rungs.claims.LONGEST_SECONDS", 100.0)
        time.sleep(0.2)
        mine = open_rungs(CONFIG, demo_space(), quick_disk, other)
        make_search(CONFIG, demo_space(), mine, workers=other).run()
        first = mine[0].records()[job[1].number]
        assert (first.architecture, first.failure) == (job[2], "hung past its limit of 0 s")
        rungs[0].tell(job[1], evaluation(job[2], 0))
        assert mine[0].records()[job[1].number] == first, "what comes too late changes nothing"


@pytest.mark.parametrize(
    "round_", [0, 5, 11, *(pytest.param(n, marks=pytest.mark.slow) for n in range(12) if n not in (0, 5, 11))]
)
def test_the_disk_is_full_at_some_write(
    round_: int, quick_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Journal.append_logs
    left = 7 + 13 * round_

    def full(self: Journal, logs: list[dict[str, Any]]) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, logs)

    monkeypatch.setattr(Journal, "append_logs", full)
    before, after = Evaluator(), Evaluator()
    with pytest.raises(OSError, match="No space left"):
        make_search(CONFIG, demo_space(), open_rungs(CONFIG, demo_space(), quick_disk), before).run()
    told = {(r.rung, r.architecture) for r in records_of(open_rungs(CONFIG, demo_space(), quick_disk))}
    rungs = open_rungs(CONFIG, demo_space(), quick_disk)
    make_search(CONFIG, demo_space(), rungs, after).run()
    assert [len(rung.complete()) for rung in rungs] == [12, 6, 3]
    assert not told & set(after.asked), "what was told is not evaluated again"
    assert records_of(rungs) == undisturbed()


def undisturbed() -> list[Any]:
    search = make_search(CONFIG, demo_space())
    search.run()
    return records_of(search.rungs)
