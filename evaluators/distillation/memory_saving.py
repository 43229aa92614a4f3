"""What is done when a training does not fit into memory: smaller micro-batches, then recomputation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from evaluators.huggingface.forwards import replaced

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


def ever_smaller(blocks: int, save_memory: Callable[[], bool]) -> Iterator[int]:
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
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context the blocks of a decoder keep what they are given alone, and run again for gradients.

    transformers' own switch acts in training mode, in which dropout would be on. Nothing here draws random
    numbers, so none are kept for the second time.
    """

    def again(forward: Callable[..., object]) -> Callable[..., object]:
        return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)

    with replaced(blocks, again):
        yield
