"""How fast a device is at what a search does, and the arithmetic that training takes."""

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
from evaluators.distillation.schedule import Schedule, peak_rate
from evaluators.distillation.targets.live import TextTargets
from evaluators.metrics.latency import Workload, measure_latency
from evaluators.metrics.loss import validation_loss
from evaluators.teacher.weights import free_bytes


def training_flops(matrix_weights: int, tokens: int) -> int:
    """Of forward and backward pass together: six for each weight and token (arXiv 2001.08361, 2.1)."""
    return 6 * matrix_weights * tokens


#: Training is timed for so long, or for so many steps if they are over before, and for three at least.
_SECONDS, _STEPS, _FEWEST = 10.0, 64, 3
#: Weight, gradient and the two moments of AdamW, in float32.
_BYTES_A_PARAMETER = 16
#: Of the rate of a plain matrix product, what training and reading reach.
_REACHED = 0.5
_SIDE = 1024


@dataclass(frozen=True)
class Pace:
    """What one student does on a device."""

    learnt: float
    """Tokens a second of training."""
    read: float
    """Tokens a second of validation."""
    latency_seconds: float
    """To measure its latency in turns with a teacher of its size."""
    timed: bool
    """Whether a student was timed; else one takes too long or too much memory here, and its arithmetic was
    divided by half of the rate of a matrix product."""


class _EnoughError(Exception):
    """The time is over."""


def student_pace(
    config: PretrainedConfig, device: torch.device, dtype: str, blocks: int, block: int, workload: Workload
) -> Pace:
    """The pace of a student, its first step left out; takes some ten seconds.

    Training is by cross-entropy on random tokens: with cached targets a step costs as much as that
    (studies/benchmarks/results).

    Args:
        config: of the student.
        device: that it runs on.
        dtype: precision of the arithmetic, float32 or bfloat16.
        blocks: of an optimiser step.
        block: T, tokens a block.
        workload: of a measurement of latency.
    """
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(config)
    rate, flops = _REACHED * _product_rate(device, dtype), 2 * _matrix_parameters(shape)
    free, steps = free_bytes(device), _FEWEST * blocks * block * 3 * flops / rate
    if steps > _SECONDS or (free is not None and _BYTES_A_PARAMETER * shape.num_parameters() > free):
        tokens = (workload.repeats + 1) * (workload.prompt + workload.timed_answer)
        return Pace(rate / (3 * flops), rate / flops, 2 * tokens * flops / rate, timed=False)
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student.to(device)  # type: ignore[arg-type]
    vocabulary = config.get_text_config(decoder=True).vocab_size
    text_BT = torch.randint(vocabulary, (blocks, block))
    precision = "bf16" if dtype == "bfloat16" else "no"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    learnt = _learnt(student, text_BT, accelerator)
    with accelerator.autocast():
        read = _read(student, text_BT)
    began = time.monotonic()
    measure_latency(student, workload)
    return Pace(learnt, read, 2 * (time.monotonic() - began), timed=True)


def _learnt(student: PreTrainedModel, text_BT: Tensor, accelerator: Accelerator) -> float:
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
        watch, loss = TrainingMonitor(advance=advance), Loss.parse("cross-entropy")
        distil(student, text, schedule, accelerator, watch, loss=loss)
    return (len(times) - 1) * blocks * block / (times[-1] - times[0])


def _read(student: PreTrainedModel, text_BT: Tensor) -> float:
    student.eval()
    validation_loss(student, text_BT)
    began, tokens = time.monotonic(), 0
    while tokens == 0 or time.monotonic() - began < _SECONDS / 20:
        validation_loss(student, text_BT)
        tokens += text_BT.numel()
    return tokens / (time.monotonic() - began)


def _matrix_parameters(shape: PreTrainedModel) -> int:
    """Parameters that a token is multiplied by; of the embeddings it reads one row."""
    embeddings = shape.get_input_embeddings()
    assert isinstance(embeddings, nn.Module)
    head = shape.get_output_embeddings()
    tied = head is not None and bool(shape.config.get_text_config(decoder=True).tie_word_embeddings)
    return int(shape.num_parameters()) - (0 if tied else sum(one.numel() for one in embeddings.parameters()))


@torch.no_grad()
def _product_rate(device: torch.device, dtype: str) -> float:
    """FLOPs a second of a product of two large matrices."""
    one = torch.ones(_SIDE, _SIDE, device=device, dtype=getattr(torch, dtype))
    _finished(one @ one)
    began, times = time.monotonic(), 0
    while times < 2 or time.monotonic() - began < _SECONDS / 40:
        _finished(one @ one)
        times += 1
    return times * 2 * _SIDE**3 / (time.monotonic() - began)


def _finished(product: Tensor) -> None:
    """Wait for a device that answers before it is done."""
    product[0, 0].item()
