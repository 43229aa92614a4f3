"""Distillation at full size on a GPU: the shapes of Llama-3.1-8B and its 4B student, with random weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from evaluators.distillation.targets.batch import FormName, Targets
from evaluators.distillation.targets.live import LiveTargets
from evaluators.huggingface.final_states import head_parameters
from space.axes.architecture import Axis
from space.cutting.extraction import extract, saved_tensors
from space.cutting.ranking import Ranking
from space.verification.verification import verified_axis_map
from studies.benchmarks.distil_models import Shape, cached, device, made
from studies.benchmarks.distil_process import Peak, in_process
from studies.benchmarks.distil_steps import our_steps
from studies.benchmarks.figure import Figure
from studies.benchmarks.space import LLAMA_8B

#: Share of the measured matrix rate that is aimed at.
_UTILISATION = 0.45


@dataclass(frozen=True)
class LargeWork:
    """How large it is."""

    shape: Shape
    """Teacher, student, and a step."""
    matrix: int = 8192
    """Rows and columns of the matrices whose product sets the pace."""


def _student(teacher: LlamaConfig) -> LlamaConfig:
    """Cut in width alone, to 4.5 billion parameters (arXiv 2408.11796)."""
    student = copy.deepcopy(teacher)
    student.head_dim = teacher.hidden_size // teacher.num_attention_heads
    student.hidden_size, student.intermediate_size = 3072, 9216
    return student


LARGE = LargeWork(Shape(LLAMA_8B, _student(LLAMA_8B), blocks=4, block=4096, steps=4))


@dataclass(frozen=True)
class Pace:
    """Of one form of targets."""

    tokens: float
    """A second."""
    flops: float
    """A second, those of ``step_flops``."""
    peak: int
    """Bytes, with both models, gradients and optimiser."""


@dataclass(frozen=True)
class LargeFound:
    """What was measured."""

    paces: dict[str, Pace]
    """By the form of the targets."""
    matrix_flops: float
    """A second, of the product of two large matrices in bfloat16."""
    extraction: tuple[float, float]
    """Seconds to cut the student out of the teacher on the GPU, and to copy it."""


def large_figures(work: LargeWork) -> list[Figure]:
    """Utilisation, tokens a second, memory, and extraction."""
    found = in_process(measured, work)
    total = float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0.0
    return figures_of(work.shape, found, total)


def figures_of(shape: Shape, found: LargeFound, total: float) -> list[Figure]:
    """A row for everything that was measured.

    Args:
        shape: of the step.
        found: in it.
        total: bytes of the GPU's memory.
    """
    head = f"{shape.teacher.hidden_size} to {shape.student.hidden_size} wide, {shape.words}"
    rows = []
    live = found.paces[FormName.LIVE]
    for form, pace in found.paces.items():
        reached, rate = pace.flops / 1e12, found.matrix_flops / 1e12
        name = f"{head}: {form}, model TFLOP/s, beside a matrix product"
        rows.append(Figure(name, reached, rate, reached / rate, _UTILISATION))
        name = f"{head}: {form}, peak GB, beside the GPU's"
        rows.append(Figure(name, pace.peak / 1e9, total / 1e9, total / pace.peak, 1.0))
        if form != FormName.LIVE:
            name = f"{head}: {form}, tokens per s, beside live"
            rows.append(Figure(name, pace.tokens, live.tokens, pace.tokens / live.tokens, 1.0))
    ours, copying = found.extraction
    rows.append(Figure(f"{head}: student cut, s, beside its copy", ours, copying, copying / ours, 0.5))
    return rows


def measured(work: LargeWork) -> LargeFound:
    """Cut a student and train it, with each form of targets."""
    matrix_flops = matrix_rate(work.matrix)
    peak = Peak()
    teacher = made(work.shape.teacher, torch.bfloat16)
    student, *extraction = _cut(teacher, work.shape)
    student = student.float()
    text, paces = work.shape.text(), {}
    with TemporaryDirectory() as folder:
        forms: dict[str, Targets] = {
            FormName.HIDDEN: cached(teacher, text, FormName.HIDDEN, Path(folder)),
            FormName.LIVE: LiveTargets(teacher, text),
        }
        for form, targets in forms.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            seconds = median(our_steps(student, targets, work.shape))
            flops = step_flops(student, teacher, work.shape, live=form == FormName.LIVE) / seconds
            paces[form] = Pace(work.shape.tokens / seconds, flops, peak.bytes())
            student.zero_grad(set_to_none=True)
    return LargeFound(paces, matrix_flops, (extraction[0], extraction[1]))


def step_flops(student: PreTrainedModel, teacher: PreTrainedModel, shape: Shape, *, live: bool) -> float:
    """Floating-point operations of a step that the models need.

    6 for each weight of the student that multiplies, and 2 for each of the teacher's that runs: of the whole
    with live targets, of the head with cached ones. Attention over tokens, norms and recomputation are left
    out, embeddings are looked up.
    """
    head = sum(parameter.numel() for parameter in head_parameters(teacher))
    theirs = _multiplying(teacher) if live else head
    return (6.0 * _multiplying(student) + 2.0 * theirs) * shape.tokens


def _multiplying(model: PreTrainedModel) -> int:
    """The weights without the input embedding, unless that is the head, too."""
    tied = model.config.get_text_config(decoder=True).tie_word_embeddings
    embeddings = list(model.get_input_embeddings().parameters())
    looked_up = 0 if tied else sum(parameter.numel() for parameter in embeddings)
    return sum(parameter.numel() for parameter in model.parameters()) - looked_up


def matrix_rate(size: int) -> float:
    """Floating-point operations a second of the product of two square matrices in bfloat16."""
    left, right = torch.randn(2, size, size, device=device()).to(torch.bfloat16)
    seconds = _seconds(lambda: left @ right, repeats=9)
    return 2.0 * size**3 / seconds


def _cut(teacher: PreTrainedModel, shape: Shape) -> tuple[PreTrainedModel, float, float]:
    """The student, the seconds to cut it, and those to copy its tensors."""
    axis_map = verified_axis_map(shape.teacher)
    canonical = saved_tensors(teacher, axis_map)
    layers = {Axis.LAYERS: torch.zeros(axis_map.teacher.layers)}
    ranking = Ranking(layers, axis_map.teacher.kv_heads, "", "")
    narrow = replace(axis_map.teacher, hidden=shape.student.hidden_size, mlp=shape.student.intermediate_size)
    students: list[PreTrainedModel] = []

    def cut() -> None:
        students[:] = [extract(canonical, axis_map, ranking, narrow)]

    seconds = _seconds(cut, repeats=3)
    tensors: list[Tensor] = [parameter.detach() for parameter in students[0].parameters()]
    copying = _seconds(lambda: [torch.clone(tensor) for tensor in tensors], repeats=3)
    return students[0], seconds, copying


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of the wall's, behind a first time that does not count."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return median(times[1:])
