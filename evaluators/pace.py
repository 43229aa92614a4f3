"""How fast students learn on a device: a few steps of a student of random weights, timed."""

from __future__ import annotations

import time
from contextlib import suppress

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from evaluators.distillation.loop import Watch, distil
from evaluators.distillation.losses import Loss
from evaluators.distillation.schedule import Schedule, peak_rate
from evaluators.distillation.targets.live import TextTargets

#: Timed for so long, or for so many steps if they are over before.
_SECONDS, _STEPS = 10.0, 64


class _EnoughError(Exception):
    """The time is over."""


def training_pace(
    config: PretrainedConfig, device: torch.device, dtype: str, blocks: int, block: int
) -> float:
    """Tokens a second of training a student, its first step left out.

    Measured by cross-entropy on random tokens: with cached targets a step costs as much as that
    (studies/benchmarks/results).

    Args:
        config: of the student.
        device: that it learns on.
        dtype: precision of the arithmetic, float32 or bfloat16.
        blocks: of an optimiser step.
        block: T, tokens a block.
    """
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student.to(device)  # type: ignore[arg-type]
    vocabulary = config.get_text_config(decoder=True).vocab_size
    text = TextTargets(torch.randint(vocabulary, (blocks, block)), device)
    schedule = Schedule(
        tokens=_STEPS * blocks * block,
        blocks=blocks,
        block=block,
        peak_rate=peak_rate(student.num_parameters()),
    )
    times: list[float] = []

    def advance(tokens: int) -> None:
        times.append(time.monotonic())
        if len(times) > 2 and times[-1] - times[0] > _SECONDS:
            raise _EnoughError

    precision = "bf16" if dtype == "bfloat16" else "no"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    with suppress(_EnoughError):
        loss = Loss.parse("cross-entropy")
        distil(student, text, schedule, accelerator, Watch(advance=advance), loss=loss)
    return (len(times) - 1) * blocks * block / (times[-1] - times[0])
