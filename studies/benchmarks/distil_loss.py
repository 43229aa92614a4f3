"""The memory of the loss alone: head and divergence over slices of tokens, and over all at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from evaluators.distillation.losses import forward_kl
from evaluators.distillation.module import chunked_loss
from evaluators.huggingface.final_states import token_slice
from studies.benchmarks.distil_models import Marks, device
from studies.benchmarks.distil_process import Peak, available_bytes, in_process
from studies.benchmarks.figure import Figure

#: The unchunked loss takes at most so many times the memory of the logits in float32.
_TIMES_LOGITS = 6
_MEMORY, _EQUAL = 8.0, 1e-5


@dataclass(frozen=True)
class LossWork:
    """How large it is."""

    vocabulary: int = 131_072
    tokens: int = 4096
    """Fewer where the host has not the memory to do without slices."""
    width: int = 256
    """Of both final states."""


def loss_figures(work: LossWork) -> list[Figure]:
    """Peak memory in sum, and the largest difference between values and gradients, relative to their norm."""
    work = fitting(work, available_bytes())
    with TemporaryDirectory() as folder:
        paths = Path(folder, "sliced"), Path(folder, "whole")
        size = token_slice(work.vocabulary)
        ours, _ = in_process(taken, work, size, paths[0])
        reference, _ = in_process(taken, work, work.tokens, paths[1])
        apart = differences(*(torch.load(path) for path in paths))
    name = f"vocabulary {work.vocabulary}, {work.tokens} tokens: the loss"
    return [
        Figure(
            f"{name}, peak memory in GB, beside all tokens at once",
            ours / 1e9,
            reference / 1e9,
            reference / ours,
            _MEMORY,
        ),
        Figure(
            f"{name}, largest relative difference of value and gradients, beside 1e-5",
            max(apart),
            _EQUAL,
            _EQUAL / max(*apart, 1e-30),
            1.0,
        ),
    ]


def fitting(work: LossWork, available: int) -> LossWork:
    """The same, with half the tokens until they fit into the memory there is."""
    tokens = work.tokens
    while tokens > 1 and _TIMES_LOGITS * 4 * tokens * work.vocabulary > available:
        tokens //= 2
    return LossWork(work.vocabulary, tokens, work.width)


def taken(work: LossWork, size: int, kept: Path | None = None, repeats: int = 1) -> tuple[int, float]:
    """Bytes and seconds of loss and gradients, by slices of ``size`` tokens; all tokens by autograd alone.

    Args:
        work: how large it is.
        size: tokens of a slice.
        kept: a file for value and gradients.
        repeats: the seconds are their median.
    """
    states, teacher, head, teachers_head = _made(work)
    parameter = nn.Parameter(head)

    def of_slice(mine: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = theirs @ teachers_head.T
        return forward_kl(mine @ parameter.T, wanted).sum() / work.tokens

    marks, peak = Marks(), Peak()
    marks()
    for _ in range(repeats):
        states.grad = parameter.grad = None
        if size < work.tokens:
            value = chunked_loss(of_slice, states, [teacher], [parameter], size)
        else:
            value = of_slice(states, teacher)
        value.backward()
        marks()
    height = peak.bytes()
    if kept is not None:
        torch.save([value.detach(), states.grad, parameter.grad], kept)
    return height, median(marks.between())


def _made(work: LossWork) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States and heads of both, with logits that differ by about as much as those of trained models."""
    torch.manual_seed(0)
    with device():
        states, teacher = torch.randn(2, work.tokens, work.width)
        head, teachers_head = 2 * work.width**-0.5 * torch.randn(2, work.vocabulary, work.width)
    return states.clone().requires_grad_(), teacher.clone(), head.clone(), teachers_head.clone()


def differences(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """The norm of each difference over that of what is wanted."""
    return [float((mine - theirs).norm() / theirs.norm()) for mine, theirs in zip(found, wanted, strict=True)]
