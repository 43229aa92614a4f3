"""A nested search as a user runs it: interrupted, or by two workers, it comes to the same end."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

from evaluators.distillation.checkpoint import read_metadata
from evaluators.distillation.schedule import DivergenceError
from search.runs.summary import check
from search.stages.nested import NestedEvaluator, drawn_in_turn, nested_path
from search.storage.workers import Workers
from search.terminal.console import Console
from space.input_error import InputError
from tests.search.runner import NAME, Runner, without_times
from tests.search.synthetic import demo_space, run_config
from tests.small_search import write_stories, write_teacher

OPTIONS = (
    "--search nested --search-tokens 8k --trials 8 --retrain-tokens 2k --promote 1 --retrain-baselines False "
    "--basis coordinate --objectives loss,parameters --device cpu --budget 60%"
)
STEPS = 8


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("nested")
    write_teacher(folder / "teacher")
    write_stories(folder / "stories.txt")
    given = ["--model", str(folder / "teacher"), "--data", str(folder / "stories.txt"), "--study-name", NAME]
    return [*OPTIONS.split(), *given]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Runner:
    folder = tmp_path_factory.mktemp("calm")
    runner = Runner(folder, flags, folder / "cache")
    done = runner.finish()
    assert done.returncode == 0, done.stderr
    return runner


def test_it_ends_with_a_model_and_says_how_it_came_to_it(calm: Runner) -> None:
    summary = calm.summary()
    check(summary)
    tokens = [rung["tokens"] for rung in summary["rungs"]]
    assert tokens == [0, 2000, 4000, 6000, 8000]
    assert [len([t for t in summary["trials"] if t["rung"] == rung]) for rung in range(5)] == [8, 8, 6, 6, 6]
    assert all(trial["loss"] is not None for trial in summary["trials"])
    (best,) = summary["promoted"]
    assert best["label"] in {trial["label"] for trial in summary["trials"] if trial["rung"] == 4}
    assert (calm.directory / best["path"] / "model.safetensors").exists()
    assert not nested_path(calm.directory).exists(), "a complete run needs it no more"
    assert 'search = "nested"' in (calm.directory / "config.toml").read_text()


def test_stopped_in_a_stage_it_goes_on_to_the_same_end(
    calm: Runner, tmp_path: Path, flags: list[str]
) -> None:
    """By SIGKILL, once the weights of a stage are there and the next has begun."""
    runner = Runner(tmp_path / "again", flags, calm.folder / "cache")

    def in_the_second_stage(run: Path) -> bool:
        metadata = read_metadata(nested_path(run))
        return metadata is not None and metadata["step"] >= STEPS // 4

    assert runner.stop_when(in_the_second_stage, signal.SIGKILL) == -signal.SIGKILL
    done = runner.finish()
    assert done.returncode == 0, done.stderr
    assert without_times(runner.summary()) == without_times(calm.summary())


def test_two_workers_end_as_one(calm: Runner, tmp_path: Path, flags: list[str]) -> None:
    """One trains the shared weights; both score."""
    runner = Runner(tmp_path / "two", flags, calm.folder / "cache")
    one = runner.start()
    other = runner.start()
    for process in (one, other):
        _, err = process.communicate(timeout=280)
        assert process.returncode == 0, err
    losses = {(t["rung"], t["label"]): t["loss"] for t in runner.summary()["trials"]}
    assert losses == {(t["rung"], t["label"]): t["loss"] for t in calm.summary()["trials"]}
    chosen = [run.summary()["promoted"][0]["path"] for run in (runner, calm)]
    models = [
        load_file(run.directory / path / "model.safetensors")
        for run, path in zip((runner, calm), chosen, strict=True)
    ]
    assert all(values.equal(models[1][name]) for name, values in models[0].items())


def test_a_pool_is_drawn_in_turn_from_where_its_stage_begins() -> None:
    pool = demo_space().architectures[:5]
    for begins in (0, 7):
        rounds = [
            [drawn_in_turn(pool, 3, begins, begins + 5 * r + i).label for i in range(5)] for r in (0, 1)
        ]
        assert all(set(one) == {member.label for member in pool} for one in rounds)
        assert rounds[0] != rounds[1]


def test_nobody_joins_a_pool_that_has_trained(calm: Runner, tmp_path: Path, flags: list[str]) -> None:
    shutil.copytree(calm.directory, tmp_path / "runs" / NAME)
    done = Runner(tmp_path, [*flags, "--try", "layers=2"], calm.folder / "cache").finish()
    assert done.returncode == 2
    assert "slimsearch: A nested search trains its candidates together from the start; --try" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DivergenceError("the loss is nan"), "they diverged: the loss is nan. Name a lower --rate, or take"),
        (torch.OutOfMemoryError("no memory left"), "no memory left. Take --optimizer adamw-8bit, or take"),
    ],
)
def test_a_training_that_fails_is_told(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("search.stages.nested.distil_nested", fails)
    evaluator = NestedEvaluator(
        MagicMock(directory=tmp_path, config=run_config()), Workers(), Console(quiet=True)
    )
    with pytest.raises(InputError, match=f"have to train to the end; {words} --search rungs"):
        evaluator._distil(MagicMock(), MagicMock(), MagicMock(), 1, lambda tokens: None)
