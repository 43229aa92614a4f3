"""What makes a training fit and go fast: attention, compiled blocks, micro-batches, recomputation.

The fused kernel never holds the matrix of attention weights, and its backward pass makes it again.
While the matrix is small that costs more than it saves. On one core of an EPYC with torch 2.13, plain
attention took forward and backward pass of a decoder to 2.0 times the speed with blocks of 128 tokens
and heads of 8, to 1.3 with heads of 16, and to 1.1 with 256 tokens and heads of 64; but to 0.7 with 512
tokens and heads of 16, and in float32 to between 0.7 and 1.0 throughout.

A class may know only one of the two, or mean more by one (a cap on the scores, sinks), so a block is
read with both first, and plain attention is taken only where it computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import final_states, replaced_forward, vocabulary_size

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
    tokens = (torch.arange(block, device=student.device) * 7 % vocabulary_size(student))[None]

    def states() -> Tensor:
        return final_states(student, tokens).float()

    fused = states()
    with _plain(student):
        off = float((states() - fused).abs().max())
    return off <= _ROUNDING * float(fused.abs().max())


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
def compiled_blocks(
    blocks: Sequence[nn.Module], backend: str | Callable[..., Any] = "inductor"
) -> Iterator[None]:
    """Within the context the blocks of a decoder are compiled one by one, after it they are plain.

    Only their forward functions are: what listens to a block stays outside. One that cannot be compiled runs
    as it is.
    """
    compiler = partial(torch.compile, dynamic=False, backend=backend)
    with torch._dynamo.config.patch(suppress_errors=True), replaced_forward(blocks, compiler):
        yield


def reset_compiled() -> None:
    """Drop what was compiled: PyTorch keeps few versions of a class, and the next student has other sizes."""
    torch.compiler.reset()


#: States between blocks, in numbers, that a micro-batch on a host may have. Students of 20 million parameters
#: then learn as fast as with four times as many, in two thirds of the memory; with fewer, small ones learn
#: slower.
_HOST_STATES = 2**21


def first_micro_batch(blocks: int, block: int, states: int, device: torch.device) -> int:
    """How many blocks to begin with: on a GPU all, since it is fastest when full, on a host a few.

    Args:
        blocks: that the process reads in a step.
        block: T, tokens a block.
        states: numbers of one token's states between all blocks of the decoder, hidden times layers.
        device: of the student.
    """
    return blocks if device.type != "cpu" else min(blocks, max(1, _HOST_STATES // (block * states)))


def smaller_micro_batches(blocks: int, save_memory: Callable[[], bool]) -> Iterator[int]:
    """The micro-batches to try after ``blocks``: halves, and the same again with recomputation.

    Args:
        blocks: of the first micro-batch, which did not fit.
        save_memory: switches recomputation on; False if that cannot be done.

    Raises:
        torch.OutOfMemoryError: there are none left.
    """
    yield from _halves(blocks)
    if save_memory():
        yield blocks
        yield from _halves(blocks)
    raise torch.OutOfMemoryError("out of memory with a micro-batch of one block")


def _halves(blocks: int) -> Iterator[int]:
    while blocks := blocks // 2:
        yield blocks


@contextmanager
def activation_checkpointing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context the blocks of a decoder keep what they are given alone, and run again for gradients.

    transformers' own switch acts in training mode, in which dropout would be on. Nothing here draws random
    numbers, so none are kept for the second time.
    """

    def again(forward: Callable[..., object]) -> Callable[..., object]:
        return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)

    with replaced_forward(blocks, again):
        yield
