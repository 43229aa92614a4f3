"""A shorter training whose rate falls only at its end is the beginning of a longer one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from evaluators.distillation.checkpoint import read_metadata
from evaluators.distillation.loop import Checkpointing, TrainingMonitor, distil
from evaluators.distillation.schedule import Schedule, ScheduleShape
from tests.evaluators.distillation.conftest import Accelerators
from tests.evaluators.distillation.training import BLOCK, TOKENS, Recorded, loss_of
from tests.evaluators.distillation.whole_training import plan, train
from tests.evaluators.tiny_models import same_weights, tiny_student

SHORT, LONG = 10, 20
STEP = 4 * BLOCK


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_longer_training_from_the_branch_is_the_longer_one_undisturbed(
    accelerators: Accelerators, tmp_path: Path, precision: str
) -> None:
    accelerator, branch = accelerators(precision), tmp_path / "branch.safetensors"
    short, long, undisturbed = tiny_student(), tiny_student(), tiny_student()
    options: dict[str, Any] = {"most": 3, "states": True, "stem": "one student"}
    begun = train(
        short, accelerator, plan(SHORT), path=tmp_path / "short.safetensors", branch=branch, **options
    )
    told: list[int] = []
    outcome = train(
        long,
        accelerator,
        plan(LONG),
        path=tmp_path / "long.safetensors",
        start=branch,
        advance=told.append,
        **options,
    )
    wanted = train(undisturbed, accelerator, plan(LONG), most=3, states=True)
    assert same_weights(long, undisturbed)
    assert not same_weights(short, undisturbed)
    assert told[0] == 8 * STEP, "the steps before the rate fell are taken over"
    assert outcome.tokens == wanted.tokens == sum(told)
    # Of 10 steps, validations after 3, 5 and 8 came before the rate fell; of 20 they are after 5, 10, 15, 20.
    assert [tokens // STEP for tokens, _ in outcome.curve] == [3, 5, 8, 10, 15, 20]
    assert outcome.curve[:3] == begun.curve[:3]
    assert outcome.curve[3:] == wanted.curve[1:]


def test_a_branch_survives_a_kill_between_it_and_the_next_checkpoint(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    files: dict[str, Any] = {
        "path": tmp_path / "a.safetensors",
        "branch": tmp_path / "b.safetensors",
        "stem": "s",
    }
    calls = count()

    def interrupt(tokens: int) -> None:
        if next(calls) == 9:  # the first is told on beginning: step 9, the first of those that fall
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_student(), accelerator, plan(SHORT), advance=interrupt, **files)
    written = files["branch"].read_bytes()
    student, undisturbed = tiny_student(), tiny_student()
    train(student, accelerator, plan(SHORT), **files)
    train(undisturbed, accelerator, plan(SHORT))
    assert same_weights(student, undisturbed)
    assert files["branch"].read_bytes() == written


def _other_rate(steps: int) -> Schedule:
    return plan(steps, peak_rate=0.005)


def _cosine(steps: int) -> Schedule:
    return plan(steps, shape=ScheduleShape.COSINE)


def _shorter(steps: int) -> Schedule:
    return plan(steps // 4)


@pytest.mark.parametrize("other", [_other_rate, _cosine, _shorter])
def test_a_branch_that_the_training_would_not_come_to_is_not_used(
    accelerator: Accelerator, tmp_path: Path, other: Callable[[int], Schedule]
) -> None:
    branch = tmp_path / "branch.safetensors"
    train(
        tiny_student(), accelerator, plan(SHORT), path=tmp_path / "short.safetensors", branch=branch, stem="s"
    )
    assert_unused(accelerator, other(LONG), branch, tmp_path, "s")


def test_the_branch_of_another_stem_is_not_used(accelerator: Accelerator, tmp_path: Path) -> None:
    branch = tmp_path / "branch.safetensors"
    train(
        tiny_student(), accelerator, plan(SHORT), path=tmp_path / "short.safetensors", branch=branch, stem="s"
    )
    assert_unused(accelerator, plan(LONG), branch, tmp_path, "t")


def assert_unused(
    accelerator: Accelerator, schedule: Schedule, branch: Path, folder: Path, stem: str
) -> None:
    told: list[int] = []
    student, fresh = tiny_student(), tiny_student()
    path = folder / "long.safetensors"
    train(student, accelerator, schedule, path=path, start=branch, stem=stem, advance=told.append)
    train(fresh, accelerator, schedule)
    assert told[0] == 0
    assert same_weights(student, fresh)


@pytest.mark.parametrize("blocks", [20, 60])
def test_a_branch_whose_text_had_begun_again_needs_the_same_text(
    accelerator: Accelerator, tmp_path: Path, blocks: int
) -> None:
    """The branch is after 8 steps of 4 blocks; of 20 blocks some were read twice by then, of 60 none."""
    branch, text = tmp_path / "branch.safetensors", TOKENS.repeat(6, 1)
    files: dict[str, Any] = {"key": "a", "stem": "s", "seconds": 0}
    first = Checkpointing(path=tmp_path / "1.safetensors", branch=branch, **files)
    distil(
        tiny_student(),
        Recorded(text[:blocks]),
        plan(SHORT),
        accelerator,
        TrainingMonitor(validate=loss_of),
        first,
    )
    told: list[int] = []
    second = Checkpointing(path=tmp_path / "2.safetensors", start=branch, **files)
    watch = TrainingMonitor(validate=loss_of, advance=told.append)
    distil(tiny_student(), Recorded(text[:40]), plan(LONG), accelerator, watch, second)
    assert told[0] == (0 if blocks == 20 else 8 * STEP)


def test_a_cosine_has_no_branch(accelerator: Accelerator, tmp_path: Path) -> None:
    branch = tmp_path / "branch.safetensors"
    train(
        tiny_student(), accelerator, _cosine(SHORT), path=tmp_path / "a.safetensors", branch=branch, stem="s"
    )
    assert not branch.exists()


def test_a_torn_branch_is_not_used(accelerator: Accelerator, tmp_path: Path) -> None:
    branch = tmp_path / "branch.safetensors"
    train(tiny_student(), accelerator, plan(SHORT), path=tmp_path / "a.safetensors", branch=branch, stem="s")
    branch.write_bytes(branch.read_bytes()[:-1])
    assert read_metadata(branch) is None
    assert_unused(accelerator, plan(LONG), branch, tmp_path, "s")
