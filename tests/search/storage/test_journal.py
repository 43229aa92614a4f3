"""A journal stays whole whatever happens to those who write it."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection

from search.storage.journal import Journal
from tests.search.synthetic import demo_space, make_search, open_rungs_in, records_of, run_config

KILLED_ROUNDS = 25
#: More than the journal looks at in one go when it seeks the last whole line.
LONG = "x" * 150_000


@pytest.fixture
def path(quick_disk: Path) -> Path:
    return quick_disk / "study.journal"


def attributes(storage: JournalStorage) -> dict[str, Any]:
    """Of the only study."""
    return storage.get_study_user_attrs(0)


def begun(path: Path, value: str = "begun") -> JournalStorage:
    """A journal with a study that has one attribute."""
    storage = JournalStorage(Journal(path))
    storage.create_new_study([StudyDirection.MINIMIZE], "study")
    storage.set_study_user_attr(0, "0", value)
    return storage


def torn_at_every_byte(path: Path, value: str, step: int) -> Iterator[tuple[str, bytes]]:
    """Let the last record be half written at each of its bytes in turn; the name and the bytes before it."""
    JournalStorage(Journal(path)).set_study_user_attr(0, "torn", value)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    os.truncate(path, len(whole) - len(last))
    for kept in range(1, len(last), step):
        before = path.read_bytes()
        with path.open("ab") as file:
            file.write(last[:kept])
        yield str(kept), before


@pytest.mark.parametrize(("value", "step"), [("short", 1), (LONG, 9_973)])
def test_half_a_line_of_another_is_passed_over_and_cut_by_the_next_writer(
    value: str, step: int, path: Path
) -> None:
    reader, writer = begun(path), JournalStorage(Journal(path))
    expected = {"0": "begun"}
    for name, before in torn_at_every_byte(path, value, step):
        assert attributes(reader) == attributes(writer) == expected
        assert attributes(JournalStorage(JournalFileBackend(str(path)))) == expected, "Optuna's own reads it"
        writer.set_study_user_attr(0, name, value)
        expected[name] = value
        assert attributes(reader) == expected
        assert path.read_bytes().startswith(before + b'{"op_code":2,')
        assert path.read_bytes().endswith(b"}\n")
    assert len(expected) > 10
    assert attributes(JournalStorage(JournalFileBackend(str(path)))) == expected


def test_half_a_line_is_cut_when_a_journal_is_opened(path: Path) -> None:
    begun(path)
    for _, before in torn_at_every_byte(path, "short", 1):
        assert attributes(JournalStorage(Journal(path))) == {"0": "begun"}
        assert path.read_bytes() == before


def test_a_journal_whose_first_line_was_torn_begins_anew(path: Path) -> None:
    begun(path)
    first = path.read_bytes().splitlines(keepends=True)[0]
    for kept in range(1, len(first)):
        path.write_bytes(first[:kept])
        assert JournalStorage(Journal(path)).get_all_studies() == []
        assert path.read_bytes() == b""


@pytest.mark.parametrize("text", ["Tuesday: sun", "Monday: rain\nTuesday: sun", '{"op": 1', "{}"])
def test_half_a_line_of_something_else_stays(text: str, path: Path) -> None:
    path.write_text(text)
    Journal(path)
    assert path.read_text() == text


def test_whoever_reads_goes_on_behind_a_record_that_was_refused(path: Path) -> None:
    begun(path)
    journal = Journal(path)
    first, *_ = journal.read_logs(0)
    assert first["study_name"] == "study"
    for number in (0, 1, 2, 1, 0):
        found = list(journal.read_logs(number))
        assert [log["op_code"] for log in found] == [0, 2][number:]
    logs = journal.read_logs(0)
    next(logs)
    del logs  # as Optuna does when a record contradicts the ones before it
    assert [log["op_code"] for log in journal.read_logs(1)] == [2]


def test_a_lock_dies_with_its_holder(path: Path) -> None:
    storage = begun(path)
    hold = "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX)"
    command = [sys.executable, "-c", f"{hold}; print('held', flush=True); time.sleep(60)", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        writer = threading.Thread(target=storage.set_study_user_attr, args=(0, "1", "after"))
        writer.start()
        writer.join(0.2)
        assert writer.is_alive(), "whoever holds the lock is waited for"
        holder.kill()
        writer.join(5)
        assert not writer.is_alive()
    assert attributes(storage)["1"] == "after"


#: One process appends and reads; another is killed at a random instant and followed by the next, which goes
#: on. Each says what was acknowledged to it.
KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
from search.storage.journal import Journal

path, rounds = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(20)

def append(journal, writer, number, size):
    journal.append_logs([{"op_code": 2, "writer": writer, "number": number, "text": "x" * size}])

mine, theirs, read, journal = 0, [], 0, Journal(path)
for writer in range(1, rounds + 1):
    told, tell = os.pipe()
    seed, seconds = rng.random(), rng.uniform(0, 0.03)
    child = os.fork()
    if child == 0:
        os.close(told)  # so that to tell fails once nobody listens
        rng, journal, number = random.Random(seed), Journal(path), 0
        while True:
            append(journal, writer, number, rng.choice([10, 1000, 1_000_000]))
            os.write(tell, number.to_bytes(4, "big"))
            number += 1
    os.close(tell)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        append(journal, 0, mine, 100)
        mine += 1
        read += len(list(journal.read_logs(read)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(told, "rb") as file:
        theirs.append(len(file.read()) // 4)
    append(journal, 0, mine, 100)
    mine += 1
    read += len(list(journal.read_logs(read)))
print(json.dumps({"acknowledged": [mine, *theirs], "read": read}))
"""


def test_nothing_acknowledged_is_lost_while_writers_are_killed(path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(path), str(KILLED_ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    logs = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert said["read"] == len(logs)
    assert sum(said["acknowledged"][1:]) > KILLED_ROUNDS, "the killed had something to say"
    for writer, acknowledged in enumerate(said["acknowledged"]):
        numbers = [log["number"] for log in logs if log["writer"] == writer]
        assert numbers == list(range(len(numbers)))
        assert acknowledged <= len(numbers) <= acknowledged + 1
    assert {len(log["text"]) for log in logs if log["writer"]} <= {10, 1000, 1_000_000}


def largest_file(size: int) -> Callable[[], None]:
    """Let no file of this process grow beyond a size; returns what lifts that again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_ends_at_any_byte_leaves_the_journal_whole(path: Path) -> None:
    storage = begun(path)
    before = path.read_bytes()
    record = before.splitlines(keepends=True)[-1]
    for room in range(len(record)):
        lift = largest_file(len(before) + room)
        try:
            with pytest.raises(OSError, match="File too large"):
                storage.set_study_user_attr(0, "0", "other")
        finally:
            lift()
        assert path.read_bytes() == before
    storage.set_study_user_attr(0, "0", "other")
    assert attributes(storage) == {"0": "other"}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_search_whose_disk_fills_up_again_and_again_ends_as_if_nothing_had_been(full_disk: Path) -> None:
    config, space = run_config(), demo_space()
    others, failures = full_disk / "others", 0
    others.write_bytes(bytes(480 * 1024))
    while True:
        rungs = open_rungs_in(JournalStorage(Journal(full_disk / "study.journal")), config, space)
        try:
            make_search(config, space, rungs).run()
            break
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            failures += 1
            os.truncate(others, others.stat().st_size - 4096)
    assert failures > 5
    undisturbed = make_search(config, space)
    undisturbed.run()
    assert records_of(rungs) == records_of(undisturbed.rungs)
