"""Two processes that train each student of a run together come to what one comes to, and end together."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from search.rungs.claims import DEATHS
from search.rungs.evaluation import Evaluation
from search.runs.summary import check
from search.terminal.command import LostProcessError
from search.training.process_group import run_processes
from space.axes.architecture import Architecture
from tests.search.runner import Runner, without_times
from tests.search.synthetic import Evaluator, demo_space, make_search, open_rungs_in, records_of, run_config
from tests.warm_python import WarmPopen, ends, warm_group

#: Latencies aside, which are measured, all that trains.
OPTIONS = (
    *("--device", "cpu", "--dtype", "float32", "--objectives", "loss,parameters"),
    *("--correct-teacher", "4k", "--schedule", "wsd", "--trials", "3", "--promote", "1"),
    *("--search-tokens", "15k", "--depth-by", "influence"),
)
#: Both bases are tried in the slow tests, and baselines retrained.
LESS = ("--basis", "coordinate", "--repair", "none", "--retrain-baselines", "False")
ROOT = Path(__file__).parents[3]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


class Pair(Runner):
    """Runs the search in two processes that a launcher starts; what is wrong, see ``many_ranks``."""

    def __init__(self, folder: Path, flags: Sequence[str], cache: Path, *, wrong: str = "") -> None:
        super().__init__(folder, flags, cache)
        script = ["-m", "tests.search.training.many_ranks", wrong] if wrong else ["-m", "search.run"]
        self.command = [sys.executable, *TWO, *script, *flags]

    def start(self) -> subprocess.Popen[str]:
        """Begin the launcher, which starts the processes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=pipe,
            stderr=pipe,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )


class WarmPair(Pair):
    """Two processes as the launcher would start them, without it: each has its number in the environment."""

    def __init__(self, folder: Path, flags: Sequence[str], cache: Path, *, wrong: str = "") -> None:
        super().__init__(folder, flags, cache, wrong=wrong)
        self.command = [sys.executable, *self.command[1 + len(TWO) :]]

    def begin(self) -> list[WarmPopen]:
        """Begin, and do not wait; the main process is the first."""
        return warm_group(self.command, 2, cwd=self.folder, env=self.environment)

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Run both to the end; they may say something of their own."""
        statuses, out, err = self.ends()
        return subprocess.CompletedProcess(self.command, max(map(abs, statuses)), out, err)

    def ends(self) -> tuple[list[int], str, str]:
        """Run both to the end; their statuses, and what both said."""
        return ends(self.begin(), timeout=280)

    def kill_when(self, reached: Callable[[Path], bool]) -> None:
        """SIGKILL for both."""
        both, deadline = self.begin(), time.monotonic() + 200
        while not reached(self.directory):
            assert all(one.poll() is None for one in both), [one.communicate()[1] for one in both]
            assert time.monotonic() < deadline, "the stage was never reached"
            time.sleep(0.02)
        for one in both:
            one.kill()
        for one in both:
            one.communicate(timeout=20)


def started_by(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes of a run."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(found) == 2
    return [int(one) for one in found]


def at_work(process: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """But for the rounding of sums over processes, which AdamW's first steps make larger: they are signs."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key, value in one.items():
            assert_same(value, other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, value in enumerate(one):
            assert_same(value, other[number], f"{place}[{number}]")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-4), place
    else:
        assert one == other, place


def told(runner: Runner) -> dict[str, Any]:
    """The summary without what a clock decides, and without fingerprints of weights."""
    summary = without_times(runner.summary())
    check(runner.summary())
    summary["teacher"]["correction"].pop("seconds")
    summary.pop("forecast")  # follows from losses that are compared, on a grid that makes differences larger
    for trial in summary["trials"]:
        trial.pop("seconds", None)
    _check_perplexities(summary)
    return summary


def _check_perplexities(node: Any) -> None:
    """Take them out, as they follow from losses that are compared: an error of the loss is relative there."""
    if isinstance(node, dict):
        if node.get("loss") is not None and "perplexity" in node:
            assert node.pop("perplexity") == pytest.approx(math.exp(node["loss"]))
        node = list(node.values())
    for one in node if isinstance(node, list) else ():
        _check_perplexities(one)


def files(runner: Runner) -> set[str]:
    """All that a run leaves, by the names in its directory."""
    return {str(p.relative_to(runner.directory)) for p in runner.directory.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["", pytest.param("all", marks=pytest.mark.slow)])
def flags(request: pytest.FixtureRequest, small_flags: list[str]) -> list[str]:
    """Of the search; with more in the slow tests."""
    return [*small_flags, *OPTIONS, *(() if request.param else LESS)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, flags: list[str], cache: Path) -> Runner:
    runner = Runner(tmp_path_factory.mktemp("alone"), flags, cache)
    assert (done := runner.finish()).returncode == 0, done.stderr
    return runner


def test_one_process_has_nobody_to_tell() -> None:
    assert run_processes().is_only
    assert run_processes().is_main
    run_processes().send_command("anything")
    run_processes().check_device("cuda:7")
    with pytest.raises(LostProcessError), run_processes().in_step():
        raise LostProcessError("passed on")


@pytest.mark.slow
def test_processes_agree_on_how_it_went_or_know_that_they_cannot(tmp_path: Path) -> None:
    command = [sys.executable, *TWO, "-m", "tests.search.training.agreeing_ranks", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    assert first == [
        *([], ["ValueError", "one"], ["RuntimeError", "process 1: late"], ["MemoryError", "full"]),
        ["lost", True],
    ]
    assert second == [
        *([], ["ValueError", "other"], ["RuntimeError", "late"], ["RuntimeError", "process 0: full"]),
        ["lost", False],
    ]


def test_a_candidate_in_which_the_processes_lose_each_other_is_given_up_in_the_end() -> None:
    class Breaks(Evaluator):
        def evaluate(
            self, architecture: Architecture, rung: int, advance: Callable[[int], None]
        ) -> Evaluation:
            if rung == 1:
                raise LostProcessError("gone")
            return super().evaluate(architecture, rung, advance)

    config, storage = run_config(), InMemoryStorage()
    for _ in range(DEATHS):
        rungs = open_rungs_in(storage, config, demo_space())
        with pytest.raises(LostProcessError):
            make_search(config, demo_space(), rungs, Breaks()).run()
    rungs = open_rungs_in(storage, config, demo_space())
    make_search(config, demo_space(), rungs, Evaluator()).run()
    failed = [record.failure for record in records_of(rungs) if record.failure]
    assert len(failed) == 1
    assert f"{DEATHS} workers died" in failed[0]


@pytest.mark.slow
def test_two_processes_end_as_one(alone: Runner, tmp_path: Path, flags: list[str], cache: Path) -> None:
    pair = WarmPair(tmp_path, flags, cache)
    done = pair.finish()
    assert done.returncode == 0, done.stderr
    assert_same(told(alone), told(pair))
    assert files(pair) == files(alone)
    assert done.stdout.count("chosen ") == 1
    assert done.stderr.count("corrected the teacher") == 1
    trials = [t for t in pair.summary()["trials"] if t["rung"] == 1]
    assert len(re.findall(r"\d rung 1  ", done.stderr)) == len(trials)


@pytest.mark.slow
def test_killed_in_the_middle_two_go_on_as_one(
    alone: Runner, tmp_path: Path, flags: list[str], cache: Path
) -> None:
    pair = WarmPair(tmp_path, flags, cache)
    pair.kill_when(lambda run: (run / "correction.safetensors").exists())
    pair.kill_when(lambda run: any((run / "branches").glob("*-rung1.safetensors")))
    assert (done := pair.finish()).returncode == 0, done.stderr
    assert_same(told(alone), told(pair))
    again = pair.finish()
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr


@pytest.mark.slow
def test_weights_may_be_sharded(alone: Runner, tmp_path: Path, flags: list[str], cache: Path) -> None:
    pair = WarmPair(tmp_path, flags, cache, wrong="sharded")
    assert (done := pair.finish()).returncode == 0, done.stderr
    assert_same(told(alone), told(pair))
    assert files(pair) == files(alone)


BAD = pytest.mark.parametrize(
    ("bad", "message"),
    [(["--budget", "200%"], "slimsearch: "), (["--trials", "few"], "Error parsing --trials")],
)
FAILURES = pytest.mark.parametrize(
    ("wrong", "message", "status"),
    [
        ("disk", "slimsearch: the disk is full.", 2),
        ("limit", "slimsearch: one process failed while the others trained on: hung past its limit", 1),
    ],
)


@BAD
def test_bad_flags_get_one_message_and_nobody_waits(
    bad: list[str], message: str, tmp_path: Path, small_flags: list[str], cache: Path
) -> None:
    pair = WarmPair(tmp_path, [*small_flags, *bad], cache)
    statuses, _, err = pair.ends()
    assert statuses == [2, 0], err
    assert err.count(message) == 1, err
    assert not pair.directory.exists()


@pytest.mark.slow
@BAD
def test_bad_flags_get_one_message_and_nobody_hangs(
    bad: list[str], message: str, tmp_path: Path, small_flags: list[str], cache: Path
) -> None:
    pair = Pair(tmp_path, [*small_flags, *bad], cache)
    done = pair.finish()
    assert done.returncode == 1, "the launcher's own"
    assert done.stderr.count(message) == 1, done.stderr
    assert done.stderr.count("exitcode  : 2") == 1, "the main process alone failed"
    assert not pair.directory.exists()


def end_of(pair: Pair, begun: Callable[[Path], bool], number: int | None = None) -> str:
    """What a pair that has begun says when it ends, by itself or by a signal to the launcher."""
    process = pair.start()
    while not begun(pair.directory):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    started = started_by(process)
    if number is not None:
        process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert not [one for one in started if at_work(one)]
    return err


@pytest.mark.slow
@FAILURES
def test_an_error_of_the_main_process_in_a_training_ends_both(
    wrong: str, message: str, status: int, tmp_path: Path, flags: list[str], cache: Path
) -> None:
    """Also where no launcher ends the other."""
    statuses, _, said = WarmPair(tmp_path, flags, cache, wrong=wrong).ends()
    assert said.count("slimsearch") == said.count(message) == 1, said
    assert statuses[0] == status
    assert statuses[1] != 0


@pytest.mark.slow
@FAILURES
def test_an_error_of_the_main_process_in_a_training_ends_all(
    wrong: str, message: str, status: int, tmp_path: Path, flags: list[str], cache: Path
) -> None:
    pair = Pair(tmp_path, flags, cache, wrong=wrong)
    said = end_of(pair, lambda run: (run / "targets").exists())
    assert said.count("slimsearch") == said.count(message) == 1, said
    assert f"exitcode  : {status}" in said


@pytest.mark.slow
def test_interrupted_the_main_process_says_how_to_go_on(
    tmp_path: Path, flags: list[str], cache: Path
) -> None:
    """The launcher passes Ctrl-C on."""
    pair = Pair(tmp_path, flags, cache)
    said = end_of(pair, lambda run: (run / "correction.safetensors").exists(), signal.SIGINT)
    assert said.count("slimsearch: stopped.") == 1, said
