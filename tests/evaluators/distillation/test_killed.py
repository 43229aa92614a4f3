"""Killed at any instant, a training ends in the same bits as undisturbed."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.distillation.whole_training import plan, train, train_to_be_killed
from tests.evaluators.tiny_models import same_weights, tiny_student

STEPS, KILLS = 60, 5


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_weights(
    accelerators: Accelerators, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.evaluators.distillation.whole_training"])
    draw, codes = random.Random(0), list[int | None]()
    for _ in range(KILLS):
        begins = processes.Event()
        process = processes.Process(target=train_to_be_killed, args=(tmp_path, precision, STEPS, begins))
        process.start()
        assert begins.wait(60)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert codes[0] == -signal.SIGKILL
    assert codes.count(-signal.SIGKILL) > 1, codes

    files: dict[str, Any] = {"path": tmp_path / "student.safetensors", "best": tmp_path / "best.safetensors"}
    student, undisturbed, told = tiny_student(), tiny_student(), list[int]()
    outcome = train(
        student, accelerators(precision), plan(STEPS), most=2, states=True, advance=told.append, **files
    )
    assert told[0] > 0, "nothing was left of what was done"
    wanted = train(
        undisturbed,
        accelerators(precision),
        plan(STEPS),
        most=2,
        states=True,
        path=tmp_path / "other.safetensors",
        best=tmp_path / "other-best.safetensors",
    )
    assert same_weights(student, undisturbed)
    assert not same_weights(student, tiny_student())
    assert (outcome.curve, outcome.best_tokens) == (wanted.curve, wanted.best_tokens)
