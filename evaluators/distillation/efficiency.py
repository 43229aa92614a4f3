"""Memory and speed of training: eager attention, compiled blocks, micro-batches, activation checkpointing.

On a CPU, short blocks train faster with eager attention. The fused kernel (SDPA) never stores the matrix of
attention weights, and recomputes it in the backward pass. While the matrix is small, that costs more than it
saves. On one core of an EPYC with torch 2.13, eager attention changed the speed of a decoder's forward and
backward pass by a factor of 2.0 with blocks of 128 tokens and heads of 8, 1.3 with heads of 16, 1.1 with 256
tokens and heads of 64, 0.7 with 512 tokens and heads of 16, and in float32 by 0.7 to 1.0 throughout.

A model class may support only one implementation, or compute more in one of them (capped scores, sinks). So
both are run on a block first, and eager attention is used only if the results agree.
"""

from __future__ import annotations

import copy
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

#: Tokens of the longest block that trains with eager attention on a CPU.
LONGEST_EAGER_BLOCK = 256
#: Largest difference that passes as rounding, as a share of the largest final state.
_ROUNDING = 1e-4


@contextmanager
def training_attention(student: PreTrainedModel, block: int, accelerator: Accelerator) -> Iterator[None]:
    """Within the context, use the student's fastest attention implementation for training.

    Args:
        student: only SDPA is replaced; any other implementation stays.
        block: T, tokens per block.
        accelerator: device and precision.
    """
    if not eager_is_faster(student, block, accelerator):
        yield
        return
    with eager_attention(student):
        yield


def eager_is_faster(student: PreTrainedModel, block: int, accelerator: Accelerator) -> bool:
    """Return whether a student trains faster with eager attention, and to the same end.

    Args:
        student: as for ``training_attention``.
        block: T, tokens per block.
        accelerator: device and precision.
    """
    implementation = student.config._attn_implementation
    # A sharded student cannot run outside its FSDP module; sharding on a CPU is for tests only.
    short = block <= LONGEST_EAGER_BLOCK and implementation == "sdpa" and not accelerator.is_fsdp2
    fitting = short and accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    return fitting and _eager_agrees(student, block)


@contextmanager
def eager_attention(student: PreTrainedModel) -> Iterator[None]:
    """Within the context, a student computes attention without a fused kernel."""
    implementation = student.config._attn_implementation
    student.set_attn_implementation("eager")
    try:
        yield
    finally:
        student.set_attn_implementation(implementation)


@torch.no_grad()
def _eager_agrees(student: PreTrainedModel, block: int) -> bool:
    """Return whether eager attention gives the same final states as the student's own, in full precision."""
    if student.dtype is not torch.float32:
        student = copy.deepcopy(student).float()
    tokens = (torch.arange(block, device=student.device) * 7 % vocabulary_size(student))[None]

    def states() -> Tensor:
        return final_states(student, tokens).float()

    fused = states()
    with eager_attention(student):
        difference = float((states() - fused).abs().max())
    return difference <= _ROUNDING * float(fused.abs().max())


#: FLOPs of a training from which compilation pays.
_COMPILED_FLOPS = 2e17


def compiling_pays(device: torch.device, tokens: int, parameters: int) -> bool:
    """Return whether compilation pays: on a GPU, when 6 × tokens × parameters reaches 2e17.

    Forward and backward pass take six FLOPs per token and parameter (arXiv 2001.08361, section 2.1). At 3e14
    FLOPs per second, which a large GPU of 2022 or later may reach, 2e17 take eleven minutes. Compilation
    takes about a minute, whatever the length, so it has to save a tenth. Both speeds are assumptions.

    Args:
        device: device of the student.
        tokens: training tokens.
        parameters: parameters of the student.
    """
    return device.type == "cuda" and 6 * tokens * parameters >= _COMPILED_FLOPS


@contextmanager
def compiled_blocks(
    blocks: Sequence[nn.Module], backend: str | Callable[..., Any] = "inductor"
) -> Iterator[None]:
    """Within the context, compile the blocks of a decoder one by one.

    Only their forward functions are compiled, so hooks on a block stay outside. A block that cannot be
    compiled runs uncompiled.
    """
    compiler = partial(torch.compile, dynamic=False, backend=backend)
    with torch._dynamo.config.patch(suppress_errors=True), replaced_forward(blocks, compiler):
        yield


def reset_compiled() -> None:
    """Drop compiled code: PyTorch limits recompilations, and the next student has other sizes."""
    torch.compiler.reset()


#: Values in the states between blocks that a micro-batch on a CPU may have. Students of 20 million parameters
#: then train as fast as with four times as many, in two thirds of the memory; with fewer, small students
#: train more slowly.
_CPU_STATES = 2**21


def first_micro_batch(blocks: int, block: int, states: int, device: torch.device) -> int:
    """Return the micro-batch size to begin with: all blocks on a GPU, which is fastest full, a few on a CPU.

    Args:
        blocks: blocks that the process reads per step.
        block: T, tokens per block.
        states: values in one token's states between the decoder's blocks, hidden times layers.
        device: device of the student.
    """
    return blocks if device.type != "cpu" else min(blocks, max(1, _CPU_STATES // (block * states)))


def smaller_micro_batches(blocks: int, save_memory: Callable[[], bool]) -> Iterator[int]:
    """Yield the micro-batch sizes to try next: halves, then all again with activation checkpointing.

    Args:
        blocks: size of the first micro-batch, which did not fit.
        save_memory: turns activation checkpointing on; returns False if that is impossible.

    Raises:
        torch.OutOfMemoryError: no size is left.
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
    """Within the context, store only the inputs of the decoder's blocks, and recompute activations.

    The switch of transformers acts only in training mode, which would turn dropout on. The blocks draw no
    random numbers, so the random state is not preserved. Autocast does not keep the weights that it converts:
    each block is called once, and the copies of all would lie there until the last has run.
    """

    def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
        @partial(torch.compiler.disable, recursive=False)  # what it calls is compiled all the same
        def without_cache(*arguments: Any, **keywords: Any) -> Any:
            kept = torch.is_autocast_cache_enabled()
            torch.set_autocast_cache_enabled(False)
            try:
                return checkpoint(
                    forward, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords
                )
            finally:
                torch.set_autocast_cache_enabled(kept)

        return without_cache  # type: ignore[no-any-return]

    with replaced_forward(blocks, checkpointed):
        yield
