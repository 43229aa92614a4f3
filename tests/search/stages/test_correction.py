"""The correction as a stage: done once, used again if it is whole, done again if it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators.corpus.corpus import Corpus
from evaluators.distillation.loop import DivergenceError
from evaluators.metrics.loss import validation_loss
from evaluators.teacher import Teacher, load_teacher
from search.stages.correction import Correction, correct_if_asked
from search.storage.run_directory import RunDirectory
from search.terminal.console import Console
from space.input_error import InputError
from tests.search.synthetic import run_config

COUNTING = (torch.arange(40)[:, None] * 7 + torch.arange(32)[None]) % 257
CORPUS = Corpus(
    id="counting",
    calibration=COUNTING[:4],
    distillation=COUNTING[4:36],
    validation=COUNTING[36:],
    validation_bytes=128,
    fingerprint="counted",
)
CONFIG = run_config(block=32, batch_blocks=4, teacher_correction=1280)


def teacher_in(folder: Path) -> Teacher:
    return load_teacher(str(folder), revision=None, device=torch.device("cpu"), dtype=torch.float32)


def run(
    folder: Path, tiny_teacher: Path, config: Any = CONFIG, corpus: Corpus = CORPUS
) -> tuple[Teacher, Correction | None, Console]:
    console = Console(quiet=True)
    console.forecast.planned["correct"] = config.teacher_correction
    teacher, done = correct_if_asked(config, teacher_in(tiny_teacher), corpus, RunDirectory(folder), console)
    return teacher, done, console


def weights(folder: Path) -> bytes:
    return (folder / "teacher" / "model.safetensors").read_bytes()


def test_without_it_the_teacher_is_the_one_that_was_loaded(tiny_teacher: Path, tmp_path: Path) -> None:
    teacher, done, _ = run(tmp_path, tiny_teacher, replace(CONFIG, teacher_correction=0))
    assert done is None
    assert teacher.fingerprint == teacher_in(tiny_teacher).fingerprint
    assert list(tmp_path.iterdir()) == []


def test_it_is_done_once_and_its_losses_are_those_of_both_teachers(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    teacher, done, console = run(tmp_path, tiny_teacher)
    assert done is not None
    assert done.tokens == 1280
    assert done.loss_before == validation_loss(teacher_in(tiny_teacher).model, CORPUS.validation)
    assert done.loss_after == validation_loss(teacher.model, CORPUS.validation)
    assert done.loss_after < done.loss_before
    assert done.fingerprint == teacher.fingerprint
    assert "teacher correction" in console.stage_seconds
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "correction.json"}
    before = (tmp_path / "teacher" / "model.safetensors").stat().st_mtime_ns
    teacher, again, console = run(tmp_path, tiny_teacher)
    assert (again, teacher.fingerprint) == (done, done.fingerprint)
    assert (tmp_path / "teacher" / "model.safetensors").stat().st_mtime_ns == before
    assert console.forecast.left() == 0


@pytest.mark.slow
def test_weights_that_are_not_those_it_wrote_are_made_again(tiny_teacher: Path, tmp_path: Path) -> None:
    _, done, _ = run(tmp_path, tiny_teacher)
    whole = weights(tmp_path)
    (tmp_path / "teacher" / "model.safetensors").write_bytes(whole[:-4] + b"\0\0\0\0")
    _, again, _ = run(tmp_path, tiny_teacher)
    assert weights(tmp_path) == whole
    assert done is not None
    assert again is not None
    assert again.fingerprint == done.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        {"config": replace(CONFIG, teacher_correction=640)},
        pytest.param({"corpus": replace(CORPUS, distillation=COUNTING[:32])}, marks=pytest.mark.slow),
        pytest.param(
            {"corpus": replace(CORPUS, distillation_learnt=COUNTING[4:36] % 3 > 0)}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_correction_of_something_else_is_not_used(
    other: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    _, done, _ = run(tmp_path, tiny_teacher)
    _, again, _ = run(tmp_path, tiny_teacher, **other)
    assert done is not None
    assert again is not None
    assert again.key != done.key
    assert again.fingerprint != done.fingerprint


def test_stopped_it_goes_on_and_ends_in_the_same_weights(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", tiny_teacher)

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.stages.correction.atomic_write", stop)  # trained and written, not yet told
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", tiny_teacher)
    monkeypatch.undo()
    run(tmp_path / "stopped", tiny_teacher)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_one_that_diverges_is_refused_with_its_reason(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: Any, **__: Any) -> None:
        raise DivergenceError("the loss is nan at step 3")

    monkeypatch.setattr("search.stages.correction.correct_teacher", diverges)
    with pytest.raises(InputError) as caught:
        run(tmp_path, tiny_teacher)
    assert str(caught.value) == (
        "The correction of a teacher has to converge; the loss is nan at step 3. Leave --correct-teacher out."
    )


def test_one_that_did_harm_says_so() -> None:
    done = Correction("key", "print", 1000, 1.0, 1e-4, 2.0, 1.5, [], None)
    assert done.sentence == "corrected the teacher on 1,000 tokens: loss 2.0000 before, 1.5000 after"
    worse = replace(done, loss_after=2.5, note="ended early, it rose")
    assert worse.sentence == (
        "corrected the teacher on 1,000 tokens: loss 2.0000 before, 2.5000 after; it reads the validation "
        "text worse than it did; ended early, it rose"
    )
