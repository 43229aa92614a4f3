"""How much work is worth it: the defaults by the teacher's size, tokens of the search as asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from search.settings.bracket_plan import FEWEST_FIRST, SCORED, plan_bracket, rungs_up_to, tokens_for
from search.settings.config import RunConfig
from search.settings.flag_rules import parse_count
from search.settings.flags import Flags
from search.terminal.command import is_multi_process
from space.input_error import InputError


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


def search_tokens_of(
    flags: Flags,
    scale: Scale,
    rung_tokens: Sequence[int],
    architectures: int,
    directory: Path,
    pace: Callable[[], float],
) -> int:
    """Tokens of all short distillations together.

    With rungs of the user's, as many candidates as by default begin; with trials of the user's, half of them.

    Args:
        flags: of the user.
        scale: the defaults.
        rung_tokens: of each candidate at rung 1, 2, …
        architectures: of the space.
        directory: of the run; one that was begun with as many hours keeps the tokens that it made of them.
        pace: measures tokens a second of a student's training on this device.

    Raises:
        InputError: hours are asked of several processes that train each student together.
    """
    if flags.search_tokens is not None:
        return parse_count(flags.search_tokens, "--search-tokens")
    if flags.search_hours is not None:
        if is_multi_process():
            raise InputError(
                "The pace of a device is measured by one process",
                f"--search-hours {flags.search_hours} was given to several that train together",
                "Say how many with --search-tokens",
            )
        begun = _begun(directory)
        if begun is not None and begun.search_hours == flags.search_hours:
            return begun.search_tokens
        return round(flags.search_hours * 3600 * pace())
    usual = rungs_up_to(scale.first_rung_tokens, scale.retrain_tokens)
    first = plan_bracket(scale.search_tokens, usual, architectures).rung_candidates[0]
    if not flags.rung_tokens and not flags.trials:
        return scale.search_tokens
    half = -(-(flags.trials or architectures) // SCORED)
    first = min(first, max(half, min(FEWEST_FIRST, flags.trials or architectures)))
    tokens = tokens_for(first, rung_tokens)
    # Rungs that are left out leave nothing to spend.
    plan = plan_bracket(tokens, rung_tokens, architectures, flags.trials, bool(flags.rung_tokens))
    return tokens_for(first, plan.rung_tokens)


def _begun(directory: Path) -> RunConfig | None:
    try:
        return RunConfig.load(directory / "config.toml")
    except (OSError, ValueError):
        return None
