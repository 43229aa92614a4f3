"""Where the weights of a run lie changes nothing that it finds; little is on the device while it trains."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluators.distillation import loop
from evaluators.distillation.states import layers_of
from evaluators.distillation.training import Training
from evaluators.huggingface import residence
from evaluators.huggingface.final_states import head_parameters
from evaluators.teacher import Teacher
from search.settings import costs
from search.settings.command_line import read_flags
from search.settings.placement import Placement
from search.settings.resolution import resolve
from search.settings.resolved import Resolved
from search.stages import pipeline, preparation, sorted_weights
from search.stages.sorted_weights import SortedWeights, check_sorted_weights, sorted_bytes_of
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.input_error import InputError
from tests.small_search import SMALL, write_stories, write_teacher
from tests.warm_python import brief

ON_THE_HOST = Placement(teacher_stays=False, sorted_stay=False)
#: Fields of a summary that a clock decides.
CLOCKED = {"created", "seconds", "energy", "breakdown"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a teacher and its text."""
    folder = tmp_path_factory.mktemp("placement")
    write_teacher(folder / "teacher")
    write_stories(folder / "stories.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMSEARCH_CACHE", str(folder / "cache"))
        patch.setattr("search.settings.costs._WORKLOADS", brief(costs._WORKLOADS))
        yield folder


def resolved(folder: Path, placement: Placement) -> Resolved:
    words = [*SMALL.replace("--basis coordinate", "--basis auto").split(), "--calibration-samples", "16"]
    words += ["--budget", "60%", "--model", str(folder / "teacher"), "--data", str(folder / "stories.txt")]
    return replace(resolve(read_flags([*words, "--targets", "hidden"])), placement=placement)


def searched(run: Resolved, directory: RunDirectory) -> dict[str, Any]:
    """The summary of a whole run."""
    return pipeline.run(run, directory, Console(quiet=True), "a command")


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clock(one) for key, one in value.items() if key not in CLOCKED}
    return [without_clock(one) for one in value] if isinstance(value, list) else value


@dataclass
class Device:
    """Copies stand for what lies on a device."""

    teacher: Teacher | None = None
    trainings: int = 0

    def transfer(self, values: Tensor, device: torch.device) -> Tensor:
        return values.clone()

    def watch(self, teacher: Teacher) -> Teacher:
        """Let no forward pass go without the weights on the device."""
        self.teacher, home = teacher, {id(one): one.data_ptr() for one in teacher.model.parameters()}

        def passes(*_: object) -> None:
            assert all(one.data_ptr() != home[id(one)] for one in teacher.model.parameters())

        layers_of(teacher.model)[0].register_forward_pre_hook(passes)
        return teacher

    def trains(self, training: Training) -> None:
        """See that of the teacher only its head is there."""
        assert self.teacher is not None
        self.trainings += 1
        assert self.teacher.residence._here == {id(one) for one in head_parameters(self.teacher.model)}


class StoppedError(Exception):
    """As if the process were killed."""


@pytest.mark.slow
def test_a_run_finds_the_same_wherever_its_weights_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = searched(resolved(folder, Placement()), RunDirectory(folder / "stays"))
    run, directory, device = resolved(folder, ON_THE_HOST), RunDirectory(folder / "comes"), Device()
    monkeypatch.setattr(residence, "transfer", device.transfer)
    load, train, score = preparation.teacher_of, loop._run_in_memory, preparation.score_in_basis

    def trains(training: Training, *memory: Any) -> None:
        device.trains(training)
        train(training, *memory)

    alive: list[weakref.ref[SortedWeights]] = []
    scored: list[str] = []

    def scores(candidate: Any, context: Any, advance: Any) -> Any:
        if context.sorted_weights not in [one() for one in alive]:
            gc.collect()
            assert all(one() is None for one in alive), "one basis at a time"
            alive.append(weakref.ref(context.sorted_weights))
        scored.append(candidate.basis)
        if len(scored) == 2:
            raise StoppedError
        return score(candidate, context, advance)

    monkeypatch.setattr(preparation, "teacher_of", lambda *a, **b: device.watch(load(*a, **b)))
    monkeypatch.setattr(loop, "_run_in_memory", trains)
    monkeypatch.setattr(preparation, "score_in_basis", scores)
    with pytest.raises(StoppedError):
        searched(run, directory)
    found = searched(run, directory)
    assert without_clock(found) == without_clock(expected)
    assert scored == [one.basis for one in _tried(run, 1)]
    assert device.trainings > len(scored)
    for path in (folder / "stays", folder / "comes"):
        assert list(path.glob("sorted-*")) == [], "a complete run needs none"
    one, other = (json.loads((folder / name / "basis.json").read_text()) for name in ("stays", "comes"))
    assert one == other


def _tried(run: Resolved, again: int) -> list[preparation.BasisCandidate]:
    """The students of the trial of bases; the one that was stopped twice."""
    tried = preparation.basis_candidates(run)
    return [*tried[: again + 1], *tried[again:]]


@pytest.mark.slow
def test_a_complete_run_writes_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(folder / "stays")
    run = resolved(folder, Placement())
    before = searched(run, directory)
    monkeypatch.setattr(sorted_weights, "write_sorted", lambda *_: pytest.fail("nothing is cut any more"))
    assert without_clock(searched(run, directory)) == without_clock(before)


def test_a_disk_that_is_too_small_is_refused_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, directory = resolved(folder, Placement()), RunDirectory(tmp_path / "run")
    assert run.turned is not None
    needed = sorted_bytes_of([run, run.turned]) + run.moments.sums.file
    monkeypatch.setattr(sorted_weights, "free_bytes", lambda path: needed)
    check_sorted_weights(run, directory)
    monkeypatch.setattr(sorted_weights, "free_bytes", lambda path: needed - 1)
    with pytest.raises(InputError, match="sorted by importance, have to fit on the disk") as error:
        check_sorted_weights(run, directory)
    assert error.value.remedy.endswith("or take --repair none")
    directory.path.mkdir()
    for made in (directory.sorted_of("coordinate"), directory.moments):
        made.touch()
        check_sorted_weights(run, directory)
        made.unlink()


@pytest.mark.gpu
def test_a_gpu_holds_the_student_alone_while_it_learns(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*SMALL.replace("--device cpu", "--device cuda").split(), "--targets", "sampled"]
    flags += ["--budget", "60%", "--model", str(folder / "teacher"), "--data", str(folder / "stories.txt")]
    run, train, held = replace(resolve(read_flags(flags)), placement=ON_THE_HOST), loop._run_in_memory, []

    def trains(training: Training, *memory: Any) -> None:
        gc.collect()
        student = sum(one.nbytes for one in training.student.parameters())
        held.append(torch.cuda.memory_allocated() / student)
        train(training, *memory)

    monkeypatch.setattr(loop, "_run_in_memory", trains)
    searched(run, RunDirectory(tmp_path / "run"))
    assert held
    assert max(held) < 1.5, "before the first step a student has no gradients and no moments"
