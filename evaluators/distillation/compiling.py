"""Compiled blocks, for trainings long enough to repay the compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from evaluators.huggingface.forwards import replaced

#: Floating-point operations of a training from which it is compiled.
_WORTH = 2e17


def compiling_pays(device: torch.device, tokens: int, parameters: int) -> bool:
    """Whether compilation is repaid: on a GPU, when 6 × tokens × parameters reaches 2e17.

    Six operations a token and parameter are those of forward and backward pass (arXiv 2001.08361, section
    2.1). At 3e14 a second, which a large GPU of 2022 or later may come to, 2e17 take eleven minutes.
    Compilation takes of the order of a minute, whatever the length, and has to save a tenth to be repaid.
    Both speeds are assumptions.

    Args:
        device: of the student.
        tokens: of the training.
        parameters: of the student.
    """
    return device.type == "cuda" and 6 * tokens * parameters >= _WORTH


@contextmanager
def compiled(blocks: Sequence[nn.Module], backend: str | Callable[..., Any] = "inductor") -> Iterator[None]:
    """Within the context the blocks of a decoder are compiled one by one, after it they are plain.

    Only their forward functions are: what listens to a block stays outside. One that cannot be compiled runs
    as it is.
    """
    compiler = partial(torch.compile, dynamic=False, backend=backend)
    with torch._dynamo.config.patch(suppress_errors=True), replaced(blocks, compiler):
        yield


def forget_compiled() -> None:
    """Drop what was compiled: PyTorch keeps few versions of a class, and the next student has other sizes."""
    torch.compiler.reset()
