"""The speed of a device at training, validation and latency measurement, to plan the hours of a run."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from evaluators.distillation.loop import TrainingMonitor, distil
from evaluators.distillation.losses import Loss
from evaluators.distillation.optimizers import OptimizerName, training_bytes
from evaluators.distillation.schedule import Schedule, peak_rate
from evaluators.distillation.targets.live import TextTargets
from evaluators.metrics.latency import Workload, measure_latency
from evaluators.metrics.loss import validation_loss
from evaluators.teacher.weights import free_bytes


def training_flops(matrix_weights: int, tokens: int) -> int:
    """Return the FLOPs of forward and backward pass: six per weight and token (arXiv 2001.08361, 2.1)."""
    return 6 * matrix_weights * tokens


#: Training is timed for this many seconds or steps, whichever ends first, and for at least three steps.
_SECONDS, _STEPS, _FEWEST = 10.0, 64, 3
#: Assumed speed of training and validation, as a share of the FLOPs per second of a matrix product.
_REACHED = 0.5
_SIDE = 1024


@dataclass(frozen=True)
class Pace:
    """The speed of one student on a device."""

    learnt: float
    """Training speed, in tokens per second."""
    read: float
    """Validation speed, in tokens per second."""
    latency_seconds: float
    """Time to measure its latency in turns with a teacher of its size."""
    timed: bool
    """Whether the student was timed. If it takes too long or too much memory here, the figures are estimates
    from its FLOPs and half the rate of a matrix product."""


class _EnoughError(Exception):
    """Ends the timed training."""


def student_pace(
    config: PretrainedConfig,
    device: torch.device,
    dtype: str,
    blocks: int,
    block: int,
    workload: Workload,
    optimizer: OptimizerName = OptimizerName.ADAMW,
) -> Pace:
    """Measure or estimate the speed of a student; takes about ten seconds.

    The student trains by cross-entropy on random tokens, and its first step is not timed. A step with cached
    targets costs as much (studies/benchmarks/results).

    Args:
        config: config of the student.
        device: device of the run.
        dtype: precision of the arithmetic, float32 or bfloat16.
        blocks: blocks per optimiser step.
        block: T, tokens per block.
        workload: what a measurement of latency times.
        optimizer: what the student is trained by.
    """
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config)
    rate, flops = _REACHED * _product_rate(device, dtype), 2 * _matrix_parameters(shape)
    free, seconds = free_bytes(device), _FEWEST * blocks * block * 3 * flops / rate
    needed = training_bytes((one.shape for one in shape.parameters()), optimizer).total
    if seconds > _SECONDS or (free is not None and needed > free):
        tokens = (workload.repeats + 1) * (workload.prompt + workload.timed_answer)
        return Pace(rate / (3 * flops), rate / flops, 2 * tokens * flops / rate, timed=False)
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student.to(device)  # type: ignore[arg-type]
    vocabulary = config.get_text_config(decoder=True).vocab_size
    text_BT = torch.randint(vocabulary, (blocks, block))
    precision = "bf16" if dtype == "bfloat16" else "no"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    training_speed = _training_speed(student, text_BT, accelerator, optimizer)
    with accelerator.autocast():
        validation_speed = _validation_speed(student, text_BT)
    began = time.monotonic()
    measure_latency(student, workload)
    return Pace(training_speed, validation_speed, 2 * (time.monotonic() - began), timed=True)


def _training_speed(
    student: PreTrainedModel, text_BT: Tensor, accelerator: Accelerator, optimizer: OptimizerName
) -> float:
    blocks, block = text_BT.shape
    schedule = Schedule(
        tokens=_STEPS * blocks * block,
        blocks=blocks,
        block=block,
        peak_rate=peak_rate(student.num_parameters()),
    )
    times: list[float] = []

    def advance(tokens: int) -> None:
        times.append(time.monotonic())
        if len(times) >= _FEWEST and times[-1] - times[0] > _SECONDS:
            raise _EnoughError

    with suppress(_EnoughError):
        text = TextTargets(text_BT, accelerator.device)
        monitor, loss = TrainingMonitor(advance=advance), Loss.parse("cross-entropy")
        distil(student, text, schedule, accelerator, monitor, loss=loss, optimizer=optimizer)
    return (len(times) - 1) * blocks * block / (times[-1] - times[0])


def _validation_speed(student: PreTrainedModel, text_BT: Tensor) -> float:
    student.eval()
    validation_loss(student, text_BT)
    began, tokens = time.monotonic(), 0
    while tokens == 0 or time.monotonic() - began < _SECONDS / 20:
        validation_loss(student, text_BT)
        tokens += text_BT.numel()
    return tokens / (time.monotonic() - began)


def _matrix_parameters(shape: PreTrainedModel) -> int:
    """Count the parameters that multiply each token: all but untied embeddings, which are looked up."""
    embeddings = shape.get_input_embeddings()
    assert isinstance(embeddings, nn.Module)
    head = shape.get_output_embeddings()
    tied = head is not None and bool(shape.config.get_text_config(decoder=True).tie_word_embeddings)
    return int(shape.num_parameters()) - (0 if tied else sum(one.numel() for one in embeddings.parameters()))


@torch.no_grad()
def _product_rate(device: torch.device, dtype: str) -> float:
    """Measure the FLOPs per second of a product of two large matrices."""
    one = torch.ones(_SIDE, _SIDE, device=device, dtype=getattr(torch, dtype))
    _wait_for(one @ one)
    began, times = time.monotonic(), 0
    while times < 2 or time.monotonic() - began < _SECONDS / 40:
        _wait_for(one @ one)
        times += 1
    return times * 2 * _SIDE**3 / (time.monotonic() - began)


def _wait_for(product: Tensor) -> None:
    """Wait for a device that returns before it has finished."""
    product[0, 0].item()
