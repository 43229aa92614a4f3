"""A run directory has one configuration and any number of workers; with SQLite one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from search.settings.config import RunConfig
from search.storage.run_directory import RunDirectory
from space.input_error import InputError
from tests.search.synthetic import run_config
from tests.warm_python import WarmPopen

#: Holds the directory until its input ends.
HOLDER = """
import sys
from pathlib import Path
from search.settings.config import RunConfig
from search.storage.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).joined(RunConfig.load(Path(sys.argv[2]))):
    print("held", flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).resolve().parents[3]


def claim(path: Path, config: RunConfig) -> None:
    with RunDirectory(path).joined(config):
        pass


def test_the_first_claim_makes_the_directory_and_saves_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "name"
    claim(path, run_config())
    assert RunConfig.load(path / "config.toml") == run_config()
    claim(path, run_config())
    assert sorted(file.name for file in path.iterdir()) == ["config.toml", "locks", "workers"]
    assert list((path / "workers").iterdir()) == [], "nobody is at work"


def test_another_configuration_is_refused_by_its_differences_and_nothing_is_touched(tmp_path: Path) -> None:
    claim(tmp_path, run_config())
    before = (tmp_path / "config.toml").read_bytes()
    with pytest.raises(InputError) as caught:
        claim(tmp_path, replace(run_config(), budget=900_000, seed=3))
    assert str(caught.value) == (
        "A run directory keeps the configuration that it was begun with; "
        f"in {tmp_path}, budget is 900000, was 1000000; seed is 3, was 0. "
        "Take another --study-name, repeat the flags of that run, or delete the directory."
    )
    assert (tmp_path / "config.toml").read_bytes() == before


@pytest.mark.parametrize("text", ["", "seed = ", "seed = 1\n"], ids=["empty", "torn", "of another version"])
def test_a_configuration_that_cannot_be_read_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InputError, match=r"config\.toml cannot be read: ") as caught:
        RunDirectory(tmp_path).refuse_another(run_config())
    assert caught.value.rule == "A run directory keeps the configuration that it was begun with"
    assert (tmp_path / "config.toml").read_text() == text


def test_a_directory_that_is_absent_is_nobody_s(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "absent").refuse_another(run_config())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", ["", "sqlite:///study.db"], ids=["journal", "sqlite"])
def test_another_process_joins_unless_its_storage_serves_one(storage: str, tmp_path: Path) -> None:
    path, config = tmp_path / "name", tmp_path / "config.toml"
    config.write_text(run_config(storage=storage).to_toml())
    command = [sys.executable, "-c", HOLDER, str(path), str(config)]
    with WarmPopen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        if storage:
            with pytest.raises(InputError) as caught:
                claim(path, run_config(storage=storage))
            assert str(caught.value) == (
                f"With SQLite one process works on a run at a time; another one is at work in {path}. "
                "Wait for it, or leave --storage out: the default serves several on one host."
            )
        else:
            with RunDirectory(path).joined(run_config()) as workers:
                assert workers.others() == 1
        holder.communicate()
    with RunDirectory(path).joined(run_config(storage=storage)) as workers:
        assert workers.others() == 0


def test_a_worker_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunDirectory(tmp_path).joined(run_config()):
        raise KeyboardInterrupt
    claim(tmp_path, run_config())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        claim(tmp_path / "file" / "name", run_config())
    assert str(caught.value) == (
        f"The folder of the runs has to be writable; {tmp_path}/file/name: Not a directory. "
        "Name another with --out."
    )
