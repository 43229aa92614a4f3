"""Default amounts of data and training by the size of the teacher, and the tokens of the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from search.settings.bracket_plan import FEWEST_FIRST, SCORED, plan_bracket, rungs_up_to, tokens_for
from search.settings.flag_rules import parse_count
from search.settings.flags import Flags


@dataclass(frozen=True)
class Scale:
    """Default amounts for teachers up to a certain size."""

    teacher_parameters: float
    """Parameters of the largest teacher that these defaults apply to."""
    block: int
    """Tokens per block."""
    batch_blocks: int
    """Blocks per optimiser step."""
    calibration_blocks: int
    """Blocks on which importance is computed."""
    validation_blocks: int
    """Blocks on which losses are measured."""
    first_rung_tokens: int
    """Training tokens of each candidate at rung 1."""
    search_tokens: int
    """Training tokens of all short distillations together."""
    retrain_tokens: int
    """Training tokens of each retraining."""
    promote: int
    """Number of candidates that are retrained."""


#: From the paper (arXiv 2407.14679): 1024 calibration samples, and for large teachers about 100 times the
#: tokens of the first rung for retraining. The small scales are what two CPU cores can do in minutes.
SCALES = (
    Scale(10e6, 128, 8, 256, 128, 12_288, 1_000_000, 196_608, 5),
    Scale(100e6, 256, 16, 512, 256, 500_000, 25_000_000, 20_000_000, 2),
    Scale(1e9, 1024, 32, 1024, 128, 1_000_000, 100_000_000, 200_000_000, 3),
    Scale(float("inf"), 4096, 32, 1024, 64, 2_000_000, 200_000_000, 200_000_000, 3),
)


def scale_for(teacher_parameters: int) -> Scale:
    """Return the defaults for a teacher of this size."""
    return next(scale for scale in SCALES if teacher_parameters <= scale.teacher_parameters)


def default_device() -> str:
    """Return the best PyTorch device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_is_here(device: str) -> bool:
    """Return whether a device is one of this machine's; a plan may be for a CUDA card that is not."""
    return not device.startswith("cuda") or torch.cuda.is_available()


def default_dtype(device: str, teacher_parameters: int) -> str:
    """Return bfloat16 where it is faster: on GPUs, and from a million parameters on CPUs that support it."""
    if device.startswith("cuda"):
        return "bfloat16"
    fast_cpu = device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if fast_cpu and teacher_parameters >= 1_000_000 else "float32"


def search_tokens_of(flags: Flags, scale: Scale, rung_tokens: Sequence[int], architectures: int) -> int:
    """Return the training tokens of all short distillations together.

    If the user chose rungs or trials, the tokens are those that these rungs need with the default number of
    candidates at the first, or with half of the trials if that is fewer.

    Args:
        flags: the user's flags.
        scale: the defaults for the teacher.
        rung_tokens: training tokens of each candidate at rung 1, 2, …
        architectures: how many architectures the search space has.
    """
    if flags.search_tokens is not None:
        return parse_count(flags.search_tokens, "--search-tokens")
    usual = rungs_up_to(scale.first_rung_tokens, scale.retrain_tokens)
    first = plan_bracket(scale.search_tokens, usual, architectures).rung_candidates[0]
    if not flags.rung_tokens and not flags.trials:
        return scale.search_tokens
    half = -(-(flags.trials or architectures) // SCORED)
    first = min(first, max(half, min(FEWEST_FIRST, flags.trials or architectures)))
    tokens = tokens_for(first, rung_tokens)
    # Rungs that the plan drops get no tokens.
    plan = plan_bracket(tokens, rung_tokens, architectures, flags.trials, bool(flags.rung_tokens))
    return tokens_for(first, plan.rung_tokens)
