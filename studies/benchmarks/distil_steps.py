"""What a training step costs: with cached targets, with a live teacher, and with cross-entropy alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.loop import TrainingMonitor, distil
from evaluators.distillation.schedule import Schedule
from evaluators.distillation.targets.batch import FormName, Targets
from evaluators.distillation.targets.live import LiveTargets
from studies.benchmarks.distil_models import (
    Marks,
    Shape,
    accelerator,
    cached,
    device,
    made,
    teacher_of,
    unit,
)
from studies.benchmarks.distil_process import in_process
from studies.benchmarks.figure import Figure

PLAIN, LIVE = "cross-entropy", "live targets"
#: The forms of cached targets that are measured.
CACHED = (FormName.HIDDEN, FormName.SAMPLED)
#: A step with cached targets costs at most so much of one with cross-entropy, …
_OVER_PLAIN = 1.15
#: … and one with a live teacher of twice the student's size at least so much of it.
_LIVE_OVER_CACHED = 1.5


def step_figures(shape: Shape, rounds: int) -> list[Figure]:
    """Cached targets beside cross-entropy, and beside a live teacher."""
    seconds = in_process(step_seconds, shape, rounds)
    figures = []
    for form in CACHED:
        for beside, bound in ((PLAIN, 1 / _OVER_PLAIN), (LIVE, _LIVE_OVER_CACHED)):
            name = f"{shape.words}: a step, {form} targets, {unit()}, beside {beside}"
            ours, reference = seconds[form], seconds[beside]
            figures.append(Figure(name, ours, reference, reference / ours, bound))
    return figures


def step_seconds(shape: Shape, rounds: int) -> dict[str, float]:
    """The median time of a step of each kind, all kinds in turns.

    The live teacher is held in bfloat16, in which it is quickest.
    """
    student, teacher = made(shape.student, torch.float32), teacher_of(shape)
    quick = teacher if teacher.dtype is torch.bfloat16 else made(shape.teacher, torch.bfloat16)
    text = shape.text()
    with TemporaryDirectory() as folder:
        kinds: dict[str, Callable[[], list[float]]] = {
            PLAIN: lambda: plain_steps(student, text, shape),
            LIVE: lambda: our_steps(student, LiveTargets(quick, text), shape),
        }
        for form in CACHED:
            targets = cached(teacher, text, form, Path(folder))
            kinds[form] = partial(our_steps, student, targets, shape)
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, work in kinds.items():
                found[kind] += work()
    return {kind: median(times) for kind, times in found.items()}


def our_steps(student: PreTrainedModel, targets: Targets, shape: Shape) -> list[float]:
    """The times of steps in the loop that a search trains with, behind a first one."""
    marks = Marks()
    schedule = Schedule(
        tokens=(shape.steps + 1) * shape.tokens, blocks=shape.blocks, block=shape.block, peak_rate=1e-4
    )
    distil(student, targets, schedule, accelerator(), TrainingMonitor(advance=marks))
    return marks.between()[1:]


def plain_steps(student: PreTrainedModel, text: Tensor, shape: Shape) -> list[float]:
    """The times of steps with the loss of the student's own class, behind a first one."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    marks = Marks()
    marks()
    for step in range(shape.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        first = step * shape.blocks % len(text)
        tokens = text[first : first + shape.blocks].to(device(), torch.long)
        with torch.autocast(device().type, torch.bfloat16):
            loss = student(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        marks()
    return marks.between()[1:]
