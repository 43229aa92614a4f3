"""The table of what a family cost, as text."""

from __future__ import annotations

from search.family.family_cost import FamilyCost
from search.terminal.aligned import aligned
from space.counting.budget import spoken


def family_table(cost: FamilyCost) -> str:
    """A line for each run, and below it what the figures are."""
    head = ["run", "parameters", "loss", "search", "retraining", "FLOPs", "separately", "random weights"]
    rows = [head]
    for stage in cost.stages:
        tokens = spoken(stage.search_tokens), spoken(stage.retraining_tokens)
        flops = stage.flops, cost.separate(stage), cost.scratch(stage)
        rows.append([stage.name, f"{stage.parameters:,}", f"{stage.loss:.4f}", *tokens, *map(_flops, flops)])
    separate = sum(cost.separate(stage) for stage in cost.stages)
    scratch = [cost.scratch(stage) for stage in cost.stages]
    together = None if None in scratch else sum(one or 0 for one in scratch)
    search = spoken(sum(stage.search_tokens for stage in cost.stages))
    retraining = spoken(sum(stage.retraining_tokens for stage in cost.stages))
    rows.append(["together", "", "", search, retraining, *map(_flops, (cost.flops, separate, together))])
    return "\n".join([f"family   {cost.name}", *aligned(rows), *_notes(cost)])


def _notes(cost: FamilyCost) -> list[str]:
    teachers = "the models that they are cut from" if cost.taught_by == "previous" else cost.original
    notes = [
        f"Later runs are taught by {teachers}.",
        "Measured: parameters, losses, and the tokens that search and retraining trained students on.",
        "Arithmetic: FLOPs, 6 a weight and token trained on, 2 a weight and token that a teacher read.",
        f"separately: every budget searched from {cost.original} and taught by it, on as many tokens.",
    ]
    if cost.saving is None:
        notes.append(
            f"random weights: not told, since the tokens that {cost.original} was trained on are not known; "
            "--teacher-tokens says them."
        )
    else:
        notes.append(
            f"random weights: every model trained on the {spoken(cost.teacher_tokens or 0)} tokens of "
            f"{cost.original}. With its own training on both sides, that costs {cost.saving:.3g} times what "
            "the family cost."
        )
    if len({stage.validation for stage in cost.stages}) > 1:
        each = "; ".join(f"{stage.name}: {stage.validation}" for stage in cost.stages)
        notes.append(f"The losses are not of the same text: {each}.")
    return notes


def _flops(number: int | None) -> str:
    return "–" if number is None else f"{number:.2e}"
