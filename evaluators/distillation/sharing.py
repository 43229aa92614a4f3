"""A student that the main process made, handed to the others that train it together.

Pruning needs the teacher's sorted weights, which are as large as the teacher; so one process prunes, and the
others are sent what came of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from space.cutting.extraction import assemble


@dataclass(frozen=True)
class Described:
    """A student without its weights."""

    config: PretrainedConfig
    tensors: dict[str, tuple[torch.Size, torch.dtype]]
    """Shapes and types of what is saved, by name, in the order in which it is sent."""


def describe(student: PreTrainedModel) -> Described:
    """What others have to know of a student before it is sent."""
    return Described(student.config, {name: (one.shape, one.dtype) for name, one in _saved(student)})


@torch.no_grad()
def send(student: PreTrainedModel) -> None:
    """Send the weights to all other processes, each of which calls ``receive``."""
    for _, tensor in _saved(student):
        torch.distributed.broadcast(tensor.detach().contiguous(), 0)


def receive(described: Described, device: torch.device) -> PreTrainedModel:
    """The student that the first process sends.

    Args:
        described: what it is.
        device: of this process.
    """
    weights = {}
    for name, (shape, dtype) in described.tensors.items():
        weights[name] = torch.empty(shape, dtype=dtype, device=device)
        torch.distributed.broadcast(weights[name], 0)
    return assemble(described.config, weights)


def _saved(student: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters, tied ones once, and saved buffers."""
    yield from student.named_parameters()
    saved = student.state_dict(keep_vars=True)
    yield from ((name, one) for name, one in student.named_buffers() if name in saved)
