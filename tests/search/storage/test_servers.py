"""Searches on a real PostgreSQL and through Optuna's gRPC proxy, which stop and start in their middle."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from sqlalchemy import Engine, event

from search.rungs.evaluation import Evaluation, FinishedTrial
from search.storage.retry import ReconnectingStorage
from search.storage.storage import open_storage
from space.axes.architecture import Architecture
from space.input_error import InputError
from tests.search.storage.postgresql import PostgreSQL
from tests.search.synthetic import (
    Evaluator,
    demo_space,
    make_search,
    open_rungs_in,
    records_of,
    run_config,
)

CONFIG = run_config(trials=10, rung_candidates=(5, 2))
NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def undisturbed() -> list[FinishedTrial]:
    """What a search in memory finds."""
    search = make_search(CONFIG, demo_space())
    search.run()
    return records_of(search.rungs)


def searched(storage: BaseStorage, evaluator: Evaluator | None = None) -> list[FinishedTrial]:
    """What a search finds; every trial of it is complete."""
    rungs = open_rungs_in(storage, CONFIG, demo_space())
    make_search(CONFIG, demo_space(), rungs, evaluator).run()
    assert [len(rung.study.trials) for rung in rungs] == [10, 5, 2]
    assert {trial.state for rung in rungs for trial in rung.study.trials} == {TrialState.COMPLETE}
    return records_of(rungs)


class Storms(Evaluator):
    """Lets something happen in the middle of what follows some of the 17 evaluations.

    Args:
        storm: what happens, beside the search.
        seed: of the instants.
    """

    def __init__(self, storm: Callable[[random.Random], None], seed: int) -> None:
        super().__init__()
        self.rng, self.storm = random.Random(seed), storm
        self.at = {self.rng.randrange(start, start + 4) for start in range(1, 17, 4)}
        self.pool = ThreadPoolExecutor(1)
        self.storms: list[Future[None]] = []

    def evaluate(self, architecture: Architecture, rung: int, advance: Callable[[int], None]) -> Evaluation:
        """What ``figures`` says."""
        if len(self.asked) in self.at:
            self.storms.append(self.pool.submit(self._blow))
        return super().evaluate(architecture, rung, advance)

    def _blow(self) -> None:
        time.sleep(self.rng.uniform(0, 0.05))
        self.storm(self.rng)

    def survived(self, storage: BaseStorage) -> list[FinishedTrial]:
        """What a search finds."""
        try:
            found = searched(storage, self)
        finally:
            self.pool.shutdown()
        assert len(self.storms) == len(self.at)
        assert [storm.result() for storm in self.storms] == len(self.at) * [None]
        return found


@pytest.mark.slow
def test_a_search_on_postgresql(database: str, undisturbed: list[FinishedTrial]) -> None:
    assert searched(open_storage(database, NOWHERE)) == undisturbed
    assert searched(open_storage(database, NOWHERE)) == undisturbed, "it is all there"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_postgresql_stops_and_starts_in_the_middle(
    seed: int, postgresql: PostgreSQL, database: str, undisturbed: list[FinishedTrial]
) -> None:
    storms = Storms(postgresql.stop_for_a_while, seed)
    assert storms.survived(open_storage(database, NOWHERE)) == undisturbed


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    postgresql: PostgreSQL, database: str, undisturbed: list[FinishedTrial]
) -> None:
    storage = cast(ReconnectingStorage, open_storage(database, NOWHERE))
    storage.retry.seconds = 1.0
    storms = Storms(lambda rng: postgresql.stop(), 0)
    storms.at = {6}
    try:
        with pytest.raises(InputError, match="The Optuna storage has to stay reachable") as caught:
            storms.survived(storage)
    finally:
        postgresql.start()
    assert "refused" in caught.value.values
    assert searched(open_storage(database, NOWHERE)) == undisturbed


# Threads undo each other's filters of warnings; a run opens its studies in one.
@pytest.mark.filterwarnings("ignore:.*set_metric_names is experimental")
def test_an_empty_database_is_opened_by_many_at_once(database: str) -> None:
    begin = threading.Barrier(6)

    def opened(number: int) -> list[str]:
        begin.wait()
        storage = open_storage(database, NOWHERE)
        open_rungs_in(storage, CONFIG, demo_space())
        return [study.study_name for study in storage.get_all_studies()]

    with ThreadPoolExecutor(6) as pool:
        names = list(pool.map(opened, range(6)))
    assert names == 6 * [["synthetic/r0", "synthetic/r1", "synthetic/r2"]]


def test_a_server_that_goes_away_while_a_database_is_opened(postgresql: PostgreSQL, database: str) -> None:
    """Some of the statements by which tables are made are cut off in turn."""
    stops = iter((1, 4, 12))
    left = [next(stops)]

    def execute(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            left[0] = next(stops, -1)
            postgresql.stop()
            postgresql.start()

    event.listen(Engine, "before_cursor_execute", execute)
    try:
        storage = open_storage(database, NOWHERE)
    finally:
        event.remove(Engine, "before_cursor_execute", execute)
    assert left[0] < 0
    assert storage.get_all_studies() == []


PROXY = """
import sys
from pathlib import Path
from optuna.storages import run_grpc_proxy_server
from search.storage.storage import open_storage
run_grpc_proxy_server(open_storage(sys.argv[1], Path()), host="127.0.0.1", port=int(sys.argv[2]))
"""


class Proxy:
    """Optuna's gRPC proxy in a process of its own."""

    def __init__(self, database: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.command = [sys.executable, "-W", "ignore", "-c", PROXY, database, str(self.port)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, without waiting until it answers."""
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.05)
        raise AssertionError("the proxy did not start")

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    proxy = Proxy(database)
    proxy.start()
    try:
        proxy.wait()
        yield proxy
    finally:
        proxy.stop()


@pytest.mark.slow
def test_a_search_through_the_proxy(
    proxy: Proxy, postgresql: PostgreSQL, database: str, undisturbed: list[FinishedTrial]
) -> None:
    storage = open_storage(f"grpc://127.0.0.1:{proxy.port}", NOWHERE)
    assert Storms(postgresql.stop_for_a_while, 0).survived(storage) == undisturbed
    assert searched(open_storage(database, NOWHERE)) == undisturbed


@pytest.mark.slow
def test_a_proxy_that_is_killed_and_started_again(proxy: Proxy, undisturbed: list[FinishedTrial]) -> None:
    def restart(rng: random.Random) -> None:
        proxy.stop()
        proxy.start()

    storms = Storms(restart, 0)
    storms.at = {6}
    assert storms.survived(open_storage(f"grpc://127.0.0.1:{proxy.port}", NOWHERE)) == undisturbed


@pytest.mark.parametrize(
    ("url", "module"), [("postgresql://host/name", "psycopg"), ("grpc://host:1", "grpc")]
)
def test_a_driver_that_is_not_installed(url: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught:
        open_storage(url, NOWHERE)
    assert caught.value.rule == "A storage on a server needs its driver"
    assert caught.value.values.startswith(f"{url}: ")
    assert module in caught.value.values
    assert "slimsearch[hosts]" in caught.value.remedy


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:1", "grpc://", "grpc://host:port", "grpc://host:1/name"])
def test_a_proxy_that_cannot_be_reached(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.storage.storage._OPENING_SECONDS", 0.3)
    with pytest.raises(InputError) as caught:
        open_storage(url, NOWHERE)
    assert caught.value.rule == "The Optuna storage has to be reachable"
    assert caught.value.values.startswith(f"{url} answered: ")


@pytest.mark.parametrize("user", ["absent", "postgres"])
def test_a_database_that_is_not_there(user: str, postgresql: PostgreSQL) -> None:
    url = postgresql.url("absent").replace("postgres@", f"{user}@")
    with pytest.raises(InputError, match='"absent" does not exist'):
        open_storage(url, NOWHERE)
