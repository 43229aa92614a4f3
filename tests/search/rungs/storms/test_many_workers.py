"""Many workers on one search: nothing lost, nothing twice, whoever dies and whatever goes away meanwhile."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from search.rungs.claims import DEATHS
from search.rungs.evaluation import FinishedTrial
from search.settings.config import RunConfig
from space.axes.architecture import Architecture
from tests.search.rungs.storms.worker import Crew, finish
from tests.search.storage.postgresql import PostgreSQL
from tests.search.synthetic import run_config


def config(storage: str = "", trials: int = 40, first: int = 16, second: int = 6) -> RunConfig:
    return run_config(sampler="random", storage=storage, trials=trials, rung_candidates=(first, second))


@pytest.mark.slow
def test_eight_workers_on_postgresql_finish_200_trials(quick_disk: Path, database: str) -> None:
    crew = Crew(quick_disk, config(database, 120, 60, 20))
    finish([crew.start() for _ in range(8)], seconds=240)
    records = crew.check()
    assert len(records) == 200
    with crew.rungs() as rungs:
        workers = {trial.user_attrs["lease"]["worker"] for rung in rungs for trial in rung.study.trials}
    assert len(workers) > 4, "the work was shared"


@pytest.mark.parametrize(
    ("kills", "trials", "first", "second"),
    [(3, 12, 6, 3), pytest.param(20, 80, 40, 12, marks=pytest.mark.slow)],
)
def test_workers_are_killed_at_random_instants(
    kills: int, trials: int, first: int, second: int, quick_disk: Path
) -> None:
    crew, dice = Crew(quick_disk, config("", trials, first, second), seconds=0.1), random.Random(20)
    processes = [crew.start() for _ in range(3)]
    for _ in range(kills):
        time.sleep(dice.uniform(0.02, 0.25))
        victim = processes.pop(dice.randrange(len(processes)))
        victim.kill()
        victim.join()
        processes.append(crew.start())
    finish(processes)
    crew.check()


@pytest.mark.slow
def test_postgresql_is_stopped_and_started_under_four_workers(
    quick_disk: Path, postgresql: PostgreSQL
) -> None:
    crew = Crew(quick_disk, config(postgresql.new_database(), 60, 30, 10), seconds=0.05)
    processes = [crew.start() for _ in range(4)]
    for pause, begun in ((0.5, 4), (0.7, 25), (0.3, 50)):
        while crew.begun() < begun:
            time.sleep(0.01)
        postgresql.stop()
        time.sleep(pause)
        postgresql.start()
    finish(processes)
    crew.check()


@pytest.mark.parametrize("cut", [20, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (1, 60))])
def test_the_last_line_of_the_journal_is_torn(cut: int, quick_disk: Path) -> None:
    crew = Crew(quick_disk, config(trials=20, first=8, second=3), seconds=0.05)
    first = crew.start()
    journal = quick_disk / "study.journal"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 60:
        time.sleep(0.01)
    other = crew.start()
    first.kill()
    first.join()
    with journal.open("ab") as file:
        file.write(b'{"op_code":8,"worker_id":"dead","trial_id":3,"user_attr":{"values":1}}'[:cut])
    finish([other, crew.start()])
    crew.check()


def deadly(architecture: Architecture, rung: int) -> bool:
    """A candidate that takes its worker with it, as the kernel does when memory is short."""
    if rung == 1 and architecture.layers == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return False


@pytest.mark.slow
def test_a_candidate_in_which_worker_after_worker_dies_is_given_up(quick_disk: Path) -> None:
    crew = Crew(quick_disk, config(trials=16, first=8, second=2), fails=deadly)
    processes = [crew.start() for _ in range(2)]
    deadline = time.monotonic() + 120
    while any(process.exitcode != 0 for process in processes):
        assert time.monotonic() < deadline
        processes = [p if p.exitcode in (None, 0) else crew.start() for p in processes]
        time.sleep(0.05)

    def may_fail(record: FinishedTrial) -> bool:
        return record.rung == 1 and record.architecture.layers == 8

    given_up = [record for record in crew.check(may_fail) if record.evaluation is None]
    assert given_up
    assert {record.failure for record in given_up} == {
        f"{DEATHS} workers died while they tried it: killed from outside, out of memory, or hanging"
    }
