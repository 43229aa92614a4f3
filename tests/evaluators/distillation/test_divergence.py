"""A training that goes wrong steps back once, then says why it fails."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from evaluators.distillation.checkpoint import read_metadata
from evaluators.distillation.loop import Checkpointing, DivergenceError, TrainingMonitor, distil
from evaluators.distillation.schedule import Rollback, Schedule, has_worsened, is_spike
from evaluators.distillation.targets.batch import Dense
from tests.evaluators.distillation.training import BLOCK, BLOCKS_A_STEP, STEPS, Recorded, loss_of, schedule
from tests.evaluators.tiny_models import random_tokens, same_weights, tiny_student, weights

STEP = BLOCKS_A_STEP * BLOCK


class Upset(nn.Module):
    """Makes a student whose gradient is no number in the backward passes with these numbers, from 0."""

    def __init__(self, *when: int, value: float = math.inf) -> None:
        super().__init__()
        self.student, self.calls = tiny_student(), count()
        self.when, self.value = when, value
        self.student.get_parameter("model.norm.weight").register_hook(self.hook)

    def hook(self, gradient: Tensor) -> Tensor:
        return gradient * (self.value if next(self.calls) in self.when else 1.0)


class Slower(Schedule):
    """Half the rate from the beginning."""

    def rate(self, step: int) -> float:
        return super().rate(step) * 0.5


def slower() -> Schedule:
    return Slower(**vars(schedule()))


def files(folder: Path, seconds: float = 0) -> Checkpointing:
    return Checkpointing(path=folder / "student.safetensors", key="a training", seconds=seconds)


# Stepping back


def test_before_the_first_checkpoint_it_begins_again_at_half_the_rate(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    upset, wanted, told = Upset(4), tiny_student(), list[int]()
    watch = TrainingMonitor(validate=loss_of, times=4, advance=told.append)
    saving = files(tmp_path, seconds=1000)
    outcome = distil(upset.student, Recorded(), schedule(), accelerator, watch, saving)
    undisturbed = distil(
        wanted, Recorded(), slower(), accelerator, TrainingMonitor(validate=loss_of, times=4)
    )
    assert same_weights(upset.student, wanted)
    assert outcome.curve == undisturbed.curve
    assert outcome.setback == Rollback(5, "norm of the gradient", math.inf, 0, 0.005)
    saved = read_metadata(saving.path)
    assert saved is not None
    assert saved["setback"] == vars(outcome.setback), "saved at once"
    assert told == [0, *[STEP] * 4, -4 * STEP, *[STEP] * STEPS]
    assert outcome.note == (
        "the norm of the gradient was inf at step 5; "
        "the training went on from step 0 with a peak rate of 0.005"
    )


def test_it_goes_on_from_the_last_checkpoint(accelerator: Accelerator, tmp_path: Path) -> None:
    """The steps before it had the whole rate."""
    upset, wanted = Upset(4), tiny_student()
    outcome = distil(upset.student, Recorded(), schedule(), accelerator, None, files(tmp_path))

    class Mixed(Schedule):
        def rate(self, step: int) -> float:
            return super().rate(step) * (1 if step < 4 else 0.5)

    distil(wanted, Recorded(), Mixed(**vars(schedule())), accelerator)
    assert outcome.setback is not None
    assert (outcome.setback.step, outcome.setback.back_to) == (5, 4)
    assert same_weights(upset.student, wanted)


@pytest.mark.parametrize("stop", [5, 6, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (2, 7))])
def test_killed_after_it_the_training_still_knows(
    accelerator: Accelerator, tmp_path: Path, stop: int
) -> None:
    """Stopped when the advance with this number is told: the sixth tells of the step back."""
    undisturbed = Upset(4)
    wanted = distil(
        undisturbed.student, Recorded(), schedule(), accelerator, None, files(tmp_path / "a", 1000)
    )

    calls, upset = count(), Upset(4)

    def interrupt(tokens: int) -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(
            upset.student,
            Recorded(),
            schedule(),
            accelerator,
            TrainingMonitor(advance=interrupt),
            files(tmp_path),
        )
    path = tmp_path / "student.safetensors"
    saved = read_metadata(path)
    assert saved is not None
    # One that was stopped before what upsets it meets it again.
    again = Upset(4 - saved["step"]) if saved["setback"] is None else Upset()
    outcome = distil(again.student, Recorded(), schedule(), accelerator, None, files(tmp_path))
    assert outcome.setback is not None
    assert wanted.setback is not None
    assert outcome.setback.step == wanted.setback.step == 5
    straight = Upset(4)
    distil(straight.student, Recorded(), schedule(), accelerator, None, files(tmp_path / "b"))
    assert same_weights(again.student, straight.student)


def test_the_second_time_it_fails_and_names_both(accelerator: Accelerator, tmp_path: Path) -> None:
    upset = Upset(4, 7, value=math.nan)
    reason = (
        r"^the norm of the gradient is nan at step 7, after the norm of the gradient was nan at step 5; "
        r"the training went on from step 4 with a peak rate of 0\.005$"
    )
    with pytest.raises(DivergenceError, match=reason):
        distil(upset.student, Recorded(), schedule(), accelerator, None, files(tmp_path))
    assert all(bool(value.isfinite().all()) for value in weights(upset.student).values())


def test_a_loss_that_is_no_number_is_the_same(accelerator: Accelerator, tmp_path: Path) -> None:
    calls = count()

    class Broken(Recorded):
        def predictions(self, *targets: Tensor) -> Dense:
            logits = super().predictions(*targets).logits
            return Dense(logits * (math.nan if next(calls) == 5 else 1))

    student, targets = tiny_student(), Broken()
    outcome = distil(student, targets, schedule(), accelerator, None, files(tmp_path))
    assert outcome.setback is not None
    assert (outcome.setback.what, outcome.setback.step) == ("loss", 6)
    assert all(bool(value.isfinite().all()) for value in weights(student).values())


def test_a_spike_is_the_same(accelerator: Accelerator, tmp_path: Path) -> None:
    """Weights that are multiplied by a hundred stand for a step that went too far."""
    student, steps = tiny_student(), count()

    def disturb(tokens: int) -> None:
        if next(steps) == 20:
            with torch.no_grad():
                student.get_parameter("lm_head.weight").mul_(100)

    targets = Recorded(random_tokens(1, BLOCK).repeat(4, 1))
    watch = TrainingMonitor(advance=disturb)
    # The disturbed weights are saved after step 20, and met again from there: the second time it fails.
    with pytest.raises(
        DivergenceError, match=r"^the loss, over 4 times that of the steps before, is .* after"
    ):
        distil(student, targets, schedule(40, peak_rate=0.02), accelerator, watch, files(tmp_path))
    # With an earlier checkpoint it goes on without them.
    student, steps = tiny_student(), count()
    found = distil(
        student, targets, schedule(40, peak_rate=0.02), accelerator, watch, files(tmp_path / "b", 1000)
    )
    assert found.setback is not None
    assert (found.setback.step, found.setback.back_to) == (21, 0)
    assert loss_of(student) < math.inf


def test_losses_of_the_steps_are_kept_for_the_rule(accelerator: Accelerator, tmp_path: Path) -> None:
    """Of the first step, and of the last 32."""
    kept = []
    for steps in (20, 40):
        plan = schedule(40)
        calls = count(1)

        def stop(tokens: int, calls: count[int] = calls, steps: int = steps) -> None:
            if next(calls) == steps + 2:
                raise KeyboardInterrupt

        path = tmp_path / f"{steps}"
        with pytest.raises(KeyboardInterrupt) if steps == 20 else nullcontext():
            distil(tiny_student(), Recorded(), plan, accelerator, TrainingMonitor(advance=stop), files(path))
        about = read_metadata(files(path).path)
        assert about is not None
        kept.append(about)
    assert kept[0]["first"] == kept[1]["first"] == kept[0]["recent"][0]
    assert len(kept[0]["recent"]) == 20
    assert len(kept[1]["recent"]) == 32
    assert kept[1]["recent"][:12] == kept[0]["recent"][8:]


def test_without_checkpoints_nothing_steps_back(accelerator: Accelerator) -> None:
    with pytest.raises(DivergenceError, match=r"^the norm of the gradient is inf at step 5$"):
        distil(Upset(4).student, Recorded(), schedule(), accelerator)


@pytest.mark.parametrize(
    "peak_rate", [*(pytest.param(r, marks=pytest.mark.slow) for r in (0.001, 0.01)), 0.05]
)
@pytest.mark.parametrize("repeating", [False, True])
def test_trainings_that_learn_are_left_alone(
    accelerator: Accelerator, tmp_path: Path, peak_rate: float, repeating: bool
) -> None:
    """Batches of four short blocks, whose losses differ more than any in use."""
    tokens = random_tokens(1, BLOCK).repeat(4, 1) if repeating else random_tokens(50, BLOCK)
    plan = schedule(120, peak_rate=peak_rate)
    saving = files(tmp_path, 1000)
    outcome = distil(tiny_student(), Recorded(tokens), plan, accelerator, None, saving)
    assert outcome.setback is None
    assert outcome.note is None


# The rules


def test_what_a_spike_is() -> None:
    flat = [1.0] * 20
    assert not is_spike(3.9, 2.0, flat)
    assert is_spike(4.1, 2.0, flat)
    assert not is_spike(4.1, 5.0, flat), "it began worse"
    assert not is_spike(100.0, 2.0, [1.0] * 7), "too few to tell"
    assert not is_spike(4.1, 2.0, [9.0] * 20 + [1.0] * 12), "the last 32 are what counts: a median of 9"
    assert is_spike(4.1, 2.0, [9.0] * 20 + [1.0] * 32)


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=60))
def test_losses_within_a_factor_of_four_are_no_spikes(losses: list[float]) -> None:
    for place in range(1, len(losses)):
        assert not is_spike(losses[place], losses[0], losses[:place])


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=60))
def test_losses_that_fall_are_no_spikes(losses: list[float]) -> None:
    falling = sorted(losses, reverse=True)
    for place in range(1, len(falling)):
        assert not is_spike(falling[place], falling[0], falling[:place])


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([3.0], None),
        ([3.0, 4.0], None),
        ([3.0, 3.4, 3.2], None),
        ([3.0, 3.29, 3.5], None),
        ([3.0, 3.5, 3.29], None),
        (
            [4.0, 3.0, 3.31, 3.4],
            "the validation loss rose from 3.0000 to 3.3100 and 3.4000 after 4,000 tokens",
        ),
        ([3.0, math.nan], "the validation loss is nan after 2,000 tokens"),
        ([math.inf], "the validation loss is inf after 1,000 tokens"),
    ],
)
def test_when_validations_end_a_training(losses: list[float], reason: str | None) -> None:
    curve = [(1000 * number, loss) for number, loss in enumerate(losses, start=1)]
    assert has_worsened(curve) == reason
