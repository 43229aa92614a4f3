"""Which optimiser a run trains by."""

from __future__ import annotations

import importlib.util

import torch

from evaluators.distillation.optimizers import OptimizerName
from search.settings.flags import Flags
from search.terminal.command import is_sharded
from space.input_error import InputError

AUTO = "auto"


def optimizer_for(flags: Flags, device: str) -> OptimizerName:
    """Return the optimiser of a run: the user's, or by default AdamW in float32.

    Raises:
        InputError: the user's cannot train here.
    """
    if flags.optimizer == AUTO:
        return OptimizerName.ADAMW
    name = OptimizerName(flags.optimizer)
    refusal = eight_bits_refused(flags, device) if name is OptimizerName.ADAMW_8BIT else None
    if refusal is not None:
        raise refusal
    return name


def precision_for(optimizer: OptimizerName) -> str | None:
    """Return the precision of arithmetic that an optimiser requires; None if it works in any."""
    return "bfloat16" if optimizer.weights is torch.bfloat16 else None


def eight_bits_refused(flags: Flags, device: str) -> InputError | None:
    """Return why AdamW in 8 bits cannot train in a run; None if it can."""
    remedy = "Leave --optimizer out"
    if flags.dtype == "float32":
        return InputError(
            "Weights in bfloat16 are trained in the arithmetic of bfloat16",
            "--optimizer adamw-8bit was given with --dtype float32",
            "Leave --dtype out, or take --optimizer adamw",
        )
    if torch.device(device).type not in ("cpu", "cuda"):
        return InputError("AdamW in 8 bits trains on cpu and cuda", f"the device is {device}", remedy)
    if is_sharded():
        return InputError(
            "AdamW in 8 bits keeps a whole student in every process",
            "accelerate is set to shard it (FSDP)",
            f"{remedy}: sharded, AdamW's states take little on each GPU; or launch without FSDP",
        )
    return None


def check_installed(optimizer: OptimizerName) -> None:
    """Check that the library of an optimiser is there; a plan does without it.

    Raises:
        InputError: it is not.
    """
    if optimizer is OptimizerName.ADAMW_8BIT and importlib.util.find_spec("torchao") is None:
        raise InputError(
            "AdamW in 8 bits needs torchao",
            "it is not installed here",
            "Give pip install 'slimsearch[gpu]', or take --optimizer adamw if the memory suffices",
        )
