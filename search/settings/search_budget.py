"""How many tokens the short distillations of a run may take: as asked, by hours, or by the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from search.settings.bracket_plan import FEWEST_FIRST, SCORED, plan_bracket, rungs_up_to, tokens_for
from search.settings.config import RunConfig
from search.settings.flag_rules import count_of
from search.settings.flags import Flags
from search.settings.processes import with_others
from search.settings.scale import Scale
from space.input_error import InputError


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
        return count_of(flags.search_tokens, "--search-tokens")
    if flags.search_hours is not None:
        if with_others():
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
