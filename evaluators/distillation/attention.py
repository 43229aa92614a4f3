"""The attention that trains fastest: on a CPU in bfloat16, for short blocks, the plain one.

The fused kernel never holds the matrix of attention weights, and its backward pass makes it again.
While the matrix is small that costs more than it saves. On one core of an EPYC with torch 2.13, plain
attention took forward and backward pass of a decoder to 2.0 times the speed with blocks of 128 tokens
and heads of 8, to 1.3 with heads of 16, and to 1.1 with 256 tokens and heads of 64; but to 0.7 with 512
tokens and heads of 16, and in float32 to between 0.7 and 1.0 throughout.

A class may know only one of the two, or mean more by one (a cap on the scores, sinks), so a block is
read with both first, and plain attention is taken only where it computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states, vocabulary

_LONGEST_BLOCK = 256
#: Of the largest final state, beyond which two kernels do not compute the same.
_ROUNDING = 1e-4


@contextmanager
def training_attention(student: PreTrainedModel, block: int, accelerator: Accelerator) -> Iterator[None]:
    """Within the context the student attends in the way that trains fastest, after it as it came.

    Args:
        student: a fused implementation is changed, any other left alone.
        block: T, tokens a block.
        accelerator: device and precision.
    """
    came_with = student.config._attn_implementation
    # A student whose weights are sharded cannot be tried by itself; nobody shards on a CPU but to test.
    short = block <= _LONGEST_BLOCK and came_with == "sdpa" and not accelerator.is_fsdp2
    fitting = short and accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    if not fitting or not _same_when_plain(student, block):
        yield
        return
    with _plain(student):
        yield


@contextmanager
def _plain(student: PreTrainedModel) -> Iterator[None]:
    came_with = student.config._attn_implementation
    student.set_attn_implementation("eager")
    try:
        yield
    finally:
        student.set_attn_implementation(came_with)


@torch.no_grad()
def _same_when_plain(student: PreTrainedModel, block: int) -> bool:
    """Whether its own attention and the plain one give a student the same states, in full precision."""
    tokens = (torch.arange(block, device=student.device) * 7 % vocabulary(student))[None]

    def states() -> Tensor:
        return final_states(student, tokens).float()

    fused = states()
    with _plain(student):
        off = float((states() - fused).abs().max())
    return off <= _ROUNDING * float(fused.abs().max())
