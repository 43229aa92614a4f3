"""In which numbers a run computes: of the weights in memory, and of the arithmetic of training."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from search.settings.config import RunConfig


def weights_dtype(config: RunConfig) -> torch.dtype:
    """Of the teacher in memory: on a CPU float32, since autocast does what bfloat16 is good for there."""
    half = config.device.startswith("cuda") and config.dtype == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def accelerator_of(config: RunConfig) -> Accelerator:
    """Device and precision of training."""
    return Accelerator(
        cpu=config.device == "cpu", mixed_precision="bf16" if config.dtype == "bfloat16" else "no"
    )
