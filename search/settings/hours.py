"""``--hours``, and the night that a run takes at most by default: when the pace is measured, what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from evaluators.metrics.pace import Pace
from search.settings.config import NESTED, RunConfig
from search.settings.flags import Flags
from search.settings.run_time import AUTO, Work
from search.settings.time_budget import AMOUNTS, TimeBudget
from search.terminal.command import is_multi_process
from space.input_error import InputError

#: Hours that a run may take by default.
NIGHT = 8.0
#: Share of a night that the defaults may take by an estimate, without being timed.
_FAR_LESS = 1 / 4
#: Flags by which the user fixes amounts.
_GIVEN = ("search_tokens", "rung_tokens", "trials", "retrain_tokens", "promote", "retrain_baselines")
#: The amounts that follow from a flag of another name.
_FOLLOWING = {
    "block": ("block", "batch_blocks"),
    "batch_tokens": ("block", "batch_blocks"),
    "long_context": ("block", "batch_blocks"),
    "calibration_samples": ("calibration_blocks",),
}


@dataclass(frozen=True)
class HoursAsked:
    """The hours that a run may take: the user's, or a night's."""

    named: float | None
    """Value of ``--hours``."""
    sharing: int = 1
    """Number of runs that share the hours."""

    @property
    def each(self) -> float:
        """Hours of this run."""
        return (NIGHT if self.named is None else self.named) / self.sharing


def amounts_given(flags: Flags) -> frozenset[str]:
    """Return the amounts that the user fixed, by their names in the configuration."""
    named = {name for name in _GIVEN if getattr(flags, name) not in (None, ())}
    following = [amounts for flag, amounts in _FOLLOWING.items() if getattr(flags, flag) is not None]
    return frozenset(named.union(*following))


def config_within(
    hours: HoursAsked,
    usual: RunConfig,
    given: frozenset[str],
    work: Work,
    estimate: Callable[[], Pace],
    measure: Callable[[RunConfig], Pace],
    saved: Path,
) -> tuple[RunConfig, Pace | None]:
    """Fit a configuration into hours; without hours of the user, only if it takes longer than a night.

    Args:
        hours: the hours of the run.
        usual: the configuration with the default amounts.
        given: the amounts that the user named.
        work: teacher and search space.
        estimate: estimates the pace of a student in no time.
        measure: measures the pace with the block and batch of a configuration.
        saved: the configuration of a run that goes on; of the same hours, its amounts are kept.

    Returns:
        The configuration, and the pace that its amounts follow from; ``usual`` itself if it is unchanged.

    Raises:
        InputError: the user's hours are too few, or several processes train each student together.
    """
    if is_multi_process():
        if hours.named is None:
            return usual, None
        raise InputError(
            "The pace of a device is measured by one process",
            f"--hours {hours.named:g} was given to several that train together",
            "Say how much with --search-tokens and --retrain-tokens",
        )
    before = saved_config(saved)
    if before is not None and before.hours in (hours.each, *([0.0] if hours.named is None else [])):
        return (with_saved_amounts(usual, before, given), None) if before.hours else (usual, None)
    seconds, budget = hours.each * 3600, TimeBudget(usual, given, work, estimate())
    if hours.named is None and budget.seconds(usual) < _FAR_LESS * seconds:
        return usual, None
    draft = budget.within(seconds) or budget.smallest()
    budget = replace(budget, pace=measure(draft))
    if hours.named is None and budget.seconds(usual) <= seconds:
        return usual, None
    found = budget.within(seconds)
    if found is None and hours.named is not None:
        raise _too_few(budget, hours)
    return replace(found or budget.smallest(), hours=hours.each), budget.pace


def with_saved_amounts(usual: RunConfig, before: RunConfig, given: frozenset[str]) -> RunConfig:
    """Return the configuration with the amounts of a run that goes on, but for what the user names.

    Args:
        usual: the configuration with other amounts.
        before: that of the run.
        given: the amounts that the user named.
    """
    amounts = {name: getattr(before, name) for name in (*AMOUNTS, "hours") if name not in given}
    if "promote" in given:
        amounts["promote"] = min(usual.promote, before.rung_candidates[-1])
    if usual.basis != AUTO:
        amounts["basis"] = usual.basis
    return replace(usual, **amounts)


def saved_config(path: Path) -> RunConfig | None:
    """Load a configuration; return None if it is missing or was written by another version."""
    try:
        return RunConfig.load(path)
    except (OSError, ValueError):
        return None


def _too_few(budget: TimeBudget, hours: HoursAsked) -> InputError:
    smallest = budget.smallest()
    fewest = math.ceil(1.1 * budget.seconds(smallest) * hours.sharing / 36) / 100
    distilled = f"{smallest.rung_candidates[0]} candidates of {smallest.rung_tokens[0]:,} tokens each"
    if smallest.search == NESTED:
        distilled = f"{smallest.rung_candidates[0]} candidates together for {smallest.spent_tokens:,} tokens"
    retrained = f"retrains {smallest.promote} for {smallest.retrain_tokens:,}"
    each = f", which {hours.sharing} runs share" if hours.sharing > 1 else ""
    return InputError(
        "The hours have to suffice for the smallest search that makes sense",
        f"--hours {hours.named:g} was given{each}; at {budget.pace.learnt:,.0f} tokens a second, one that "
        f"distils {distilled} and {retrained} takes {budget.seconds(smallest) / 3600:.2g} h",
        f"Allow --hours {fewest:g}",
    )
