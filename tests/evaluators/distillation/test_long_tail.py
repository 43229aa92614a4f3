"""The last steps of a training read longer blocks, at as many tokens a step, from the live teacher."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.blocks import blocks_joined, lengthened
from evaluators.distillation.loop import distil
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import Targets
from evaluators.distillation.targets.live import LiveTargets
from evaluators.distillation.targets.long_tail import LongTail, blocks_of_step
from tests.evaluators.tiny_models import random_tokens, tiny_model, tiny_student, weights

SHORT, LONG = random_tokens(12, 8, seed=0), random_tokens(3, 16, seed=1)
SCHEDULE = Schedule(tokens=6 * 32, blocks=4, block=8, peak_rate=1e-2)


def targets(share: float) -> LongTail:
    teacher = tiny_model("llama")
    return LongTail(LiveTargets(teacher, SHORT), LiveTargets(teacher, LONG), share)


@pytest.mark.parametrize(("share", "last"), [(0.01, 1), (0.34, 2), (0.5, 3)])
def test_the_last_steps_read_long_blocks(share: float, last: int) -> None:
    both = targets(share)
    read = [blocks_of_step(both, step, SCHEDULE) for step in range(6)]
    assert [source is both.long for source, _ in read] == [False] * (6 - last) + [True] * last
    assert all(len(numbers) * source.tokens.shape[1] == 32 for source, numbers in read)
    assert read[0][1].tolist() == [0, 1, 2, 3]
    assert read[6 - last][1].tolist() == [0, 1]


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_where_all_steps_are_long_it_is_a_training_on_long_blocks(micro: int) -> None:
    """Tokens of a step and learning rates are the same, and so are all weights."""
    alone = Schedule(tokens=6 * 32, blocks=2, block=16, peak_rate=1e-2)
    expected = trained(LiveTargets(tiny_model("llama"), LONG), 2, alone)
    found = trained(targets(1.0), micro)
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_the_long_steps_tell() -> None:
    """Half of them: neither a training on the short blocks nor one on the long ones."""
    found, short, long = trained(targets(0.5), 4), trained(targets(0.5).short, 4), trained(targets(1.0), 4)
    for other in (short, long):
        assert any(not torch.allclose(found[name], other[name], atol=1e-4) for name in found)


def trained(both: Targets, micro: int, schedule: Schedule = SCHEDULE) -> dict[str, torch.Tensor]:
    student = tiny_student()
    distil(student, both, schedule, Accelerator(cpu=True), micro_batch=micro)
    return weights(student)


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 12), st.booleans())
def test_longer_blocks_have_the_text_in_order(block: int, times: int, count: int, beginning: bool) -> None:
    """Each of them, but for what begins it, is a stretch of the text of consecutive blocks."""
    length, begun = block * times, int(beginning)
    text = torch.arange(1, count * (block - begun) + 1).view(count, block - begun)
    blocks = torch.cat([torch.zeros(count, begun, dtype=torch.long), text], dim=1)
    found = lengthened(blocks, length, beginning)
    joined = blocks_joined(block, length, beginning)
    assert found.shape == (count // joined, length)
    for row, longer in enumerate(found):
        assert not longer[:begun].any()
        start = row * joined * (block - begun) + 1
        assert longer[begun:].tolist() == list(range(start, start + length - begun))
