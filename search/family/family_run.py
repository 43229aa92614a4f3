"""Walking down a family: one run after another, and at the end what it all cost."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from typing import Any

import torch

from search.family.family import Family, Parent, Stage, family_of
from search.family.family_cost import FamilyCost, StageCost, stage_cost
from search.family.family_table import family_table
from search.planning.outcome import beginning, in_json, outcome, told
from search.planning.plan import Plan, plan
from search.settings.flag_rules import count_of
from search.settings.flags import Flags
from search.settings.teachers import training_tokens
from search.stages.stages import run
from search.storage.whole_file import write_whole
from search.terminal.console import Console
from space.counting.counting import matrix_polynomial


def run_family(flags: Flags, command: str) -> str:
    """Run the stages of a family, or plan them if that was asked; finished ones are run through, not again.

    Args:
        flags: with several budgets.
        command: the user's, for the summaries.

    Returns:
        The result, for stdout; in JSON if that was asked for.

    Raises:
        InputError: a stage cannot be done; of all that can be known it is told before any work.
    """
    family = family_of(flags)
    if flags.plan:
        plans = [(stage, plan(stage.resolved, stage.directory)) for stage in family.stages()]
        if flags.json:
            return in_json([{"run": one.resolved.config.name, **found.told()} for one, found in plans])
        return "\n\n".join(_planned(stage, found) for stage, found in plans)
    for _ in family.stages():  # refuses what cannot be
        pass
    texts, results, costs = [], [], []
    parent: Parent | None = None
    for number in range(len(family.budgets)):
        stage = family.stage(number, parent)
        summary = _run(family, stage, command)
        texts.append(f"{_heading(stage)}\n{outcome(summary, stage.directory)}")
        results.append(told(summary, stage.directory))
        parent = family.parent(stage, summary)
        costs.append(stage_cost(stage.resolved, summary))
    cost = _together(family, costs)
    write_whole(family.path / "family.json", json.dumps(cost.told() | {"command": command}, indent=1))
    if flags.json:
        return in_json({"models": results, "family": cost.told()})
    return "\n\n".join([*texts, family_table(cost)])


def _run(family: Family, stage: Stage, command: str) -> dict[str, Any]:
    _let_go()
    console = Console(family.flags.quiet, family.flags.verbose)
    console.say(f"{stage.resolved.config.name}: {beginning(stage.resolved)}")
    return run(stage.resolved, stage.directory, console, command)


def _let_go() -> None:
    """Give back the models of the run before, which it took out of the collector's sight."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _together(family: Family, costs: Sequence[StageCost]) -> FamilyCost:
    flags, teacher, axis_map = family.flags, family.first.config.teacher, family.first.axis_map
    said = flags.teacher_tokens
    return FamilyCost(
        name=family.name,
        original=teacher,
        original_weights=int(matrix_polynomial(axis_map).of(axis_map.teacher)),
        taught_by=flags.taught_by,
        stages=tuple(costs),
        teacher_tokens=count_of(said, "--teacher-tokens") if said else training_tokens(teacher),
    )


def _planned(stage: Stage, found: Plan) -> str:
    assumed = "counted with the most even hand-made student in its place; another changes sizes and work"
    note = f"\n{stage.resolved.config.teacher} is not there yet: {assumed}" if stage.assumed else ""
    return f"{_heading(stage)}{note}\n{found}"


def _heading(stage: Stage) -> str:
    return f"— {stage.resolved.config.name} —"
