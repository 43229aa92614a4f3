"""How much work is worth it for a teacher of a given size: the defaults behind ``--budget`` alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scale:
    """Defaults for teachers up to a size."""

    teacher_parameters: float
    """The largest teacher that this is meant for."""
    block: int
    """Tokens a block."""
    batch_blocks: int
    """Blocks of an optimiser step."""
    calibration_blocks: int
    """Samples that importance is computed on."""
    validation_blocks: int
    """Blocks that losses are measured on."""
    first_rung_tokens: int
    """Of each candidate's shortest distillation."""
    search_tokens: int
    """Of all short distillations."""
    retrain_tokens: int
    """Tokens of retraining."""
    promote: int
    """Candidates retrained."""


#: From the paper come 1024 calibration samples, and for large teachers about a hundred times the
#: tokens of the first rung for retraining; the small scales are what two CPU cores do in minutes.
SCALES = (
    Scale(10e6, 128, 8, 256, 128, 12_288, 1_000_000, 196_608, 5),
    Scale(100e6, 256, 16, 512, 256, 500_000, 25_000_000, 20_000_000, 2),
    Scale(1e9, 1024, 32, 1024, 128, 1_000_000, 100_000_000, 200_000_000, 3),
    Scale(float("inf"), 4096, 32, 1024, 64, 2_000_000, 200_000_000, 200_000_000, 3),
)


def scale_for(teacher_parameters: int) -> Scale:
    """The defaults for a teacher."""
    return next(scale for scale in SCALES if teacher_parameters <= scale.teacher_parameters)


def default_device() -> str:
    """The best device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_dtype(device: str, teacher_parameters: int) -> str:
    """bfloat16 where the hardware multiplies it faster: on GPUs, and on CPUs from a million parameters on."""
    if device.startswith("cuda"):
        return "bfloat16"
    fast_cpu = device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if fast_cpu and teacher_parameters >= 1_000_000 else "float32"
