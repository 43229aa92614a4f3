"""The speed of a device at training, validation and latency measurement, to plan the hours of a run."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from evaluators.distillation.loop import TrainingMonitor, distil
from evaluators.distillation.losses import Loss
from evaluators.distillation.optimizers import OptimizerName, make_optimizer, training_bytes
from evaluators.distillation.schedule import Schedule, peak_rate
from evaluators.distillation.targets.live import TextTargets
from evaluators.metrics.latency import Workload, measure_latency, synchronized_time
from evaluators.metrics.loss import validation_loss
from evaluators.teacher.weights import free_bytes


def training_flops(matrix_weights: int, tokens: int) -> int:
    """Return the FLOPs of forward and backward pass: six per weight and token (arXiv 2001.08361, 2.1)."""
    return 6 * matrix_weights * tokens


#: Training is timed for this many seconds or steps, whichever ends first, after one that warms up.
_SECONDS, _STEPS = 10.0, 64
#: The fewest timed steps, and what they and the one before may take, by the estimate.
_FEWEST, _MOST_SECONDS = 2, 60.0
#: Tokens of the shortest block that is timed.
_SHORTEST = 128
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


def estimated_pace(matrix_weights: int, device: torch.device, dtype: str, workload: Workload) -> Pace:
    """Estimate the speed of a student from its FLOPs and half the rate of a matrix product.

    Args:
        matrix_weights: weights of the student that multiply each token.
        device: device of the run.
        dtype: precision of the arithmetic, float32 or bfloat16.
        workload: what a measurement of latency times.
    """
    rate, flops = _REACHED * product_rate(device, dtype), 2 * matrix_weights
    tokens = (workload.repeats + 1) * (workload.prompt + workload.timed_answer)
    return Pace(rate / (3 * flops), rate / flops, 2 * tokens * flops / rate, timed=False)


def student_pace(
    config: PretrainedConfig,
    device: torch.device,
    dtype: str,
    blocks: int,
    block: int,
    workload: Workload,
    optimizer: OptimizerName = OptimizerName.ADAMW,
) -> Pace:
    """Measure or estimate the speed of a student; takes some ten seconds, for a large one up to two minutes.

    The student trains by cross-entropy on random tokens, and its first step is not timed. A step with cached
    targets costs as much (studies/benchmarks/results). Where whole steps would take too long, smaller ones
    are timed, and the optimiser's update apart, of which a whole step has one.

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
    estimate = estimated_pace(_matrix_parameters(shape), device, dtype, workload)
    free, timed = free_bytes(device), _timed_step(estimate, blocks, block)
    needed = training_bytes((one.shape for one in shape.parameters()), optimizer).total
    if timed is None or (free is not None and needed > free):
        return estimate
    try:
        return _timed_pace(config, device, dtype, (blocks, block), timed, workload, optimizer)
    except torch.OutOfMemoryError:
        return estimate


def _timed_step(estimate: Pace, blocks: int, block: int) -> tuple[int, int] | None:
    """Return blocks and tokens per block of the steps to time; None if even the smallest takes too long."""

    def seconds() -> float:
        return (1 + _FEWEST) * blocks * block / estimate.learnt

    while seconds() > _SECONDS and blocks > 1:
        blocks = -(-blocks // 2)
    while seconds() > _MOST_SECONDS and block > _SHORTEST:
        block = max(_SHORTEST, block // 2)
    return (blocks, block) if seconds() <= _MOST_SECONDS else None


def _timed_pace(
    config: PretrainedConfig,
    device: torch.device,
    dtype: str,
    step: tuple[int, int],
    timed: tuple[int, int],
    workload: Workload,
    optimizer: OptimizerName,
) -> Pace:
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student.to(device)  # type: ignore[arg-type]
    vocabulary = config.get_text_config(decoder=True).vocab_size
    text_BT = torch.randint(vocabulary, timed)
    precision = "bf16" if dtype == "bfloat16" else "no"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    seconds = _step_seconds(student, text_BT, accelerator, optimizer)
    share = timed[0] * timed[1] / (step[0] * step[1])
    if share < 1:
        update = min(_update_seconds(student, optimizer), seconds)
        seconds = (seconds - update) / share + update
    with accelerator.autocast():
        validation_speed = _validation_speed(student, text_BT)
    began = time.monotonic()
    measure_latency(student, workload)
    latency_seconds = 2 * (time.monotonic() - began)
    return Pace(step[0] * step[1] / seconds, validation_speed, latency_seconds, timed=True)


def _step_seconds(
    student: PreTrainedModel, text_BT: Tensor, accelerator: Accelerator, optimizer: OptimizerName
) -> float:
    """Return the seconds of a training step on (blocks, T) tokens."""
    blocks, block = text_BT.shape
    schedule = Schedule(
        tokens=_STEPS * blocks * block,
        blocks=blocks,
        block=block,
        peak_rate=peak_rate(student.num_parameters()),
    )
    times: list[float] = []

    def advance(tokens: int) -> None:
        if not tokens:  # the training begins
            return
        times.append(time.monotonic())
        if len(times) > _FEWEST and times[-1] - times[0] > _SECONDS:
            raise _EnoughError

    with suppress(_EnoughError):
        text = TextTargets(text_BT, accelerator.device)
        monitor, loss = TrainingMonitor(advance=advance), Loss.parse("cross-entropy")
        distil(student, text, schedule, accelerator, monitor, loss=loss, optimizer=optimizer)
    return (times[-1] - times[0]) / (len(times) - 1)


def _update_seconds(student: PreTrainedModel, name: OptimizerName) -> float:
    """Return the seconds of an update by the optimiser."""
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(student, name, rate=0.0)
    optimizer.step()  # makes the moments
    began = synchronized_time(student.device)
    optimizer.step()
    seconds = synchronized_time(student.device) - began
    student.zero_grad(set_to_none=True)
    return seconds


def _validation_speed(student: PreTrainedModel, text_BT: Tensor) -> float:
    student.eval()
    validation_loss(student, text_BT[:1])
    began, tokens = time.monotonic(), 0
    while tokens == 0 or time.monotonic() - began < _SECONDS / 5:
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


@cache
@torch.no_grad()
def product_rate(device: torch.device, dtype: str) -> float:
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
