"""Coordinates or a turned basis: hand-made students of both are distilled shortly, the better one is taken.

A turned basis keeps more of what the teacher computes, but needs a head of its own. Where head and
embedding are tied in the teacher, that costs parameters which coordinates spend elsewhere; so both fill the
same budget, and the loss decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from search.rungs.evaluation import CandidateError
from search.settings.resolution import Resolved
from search.stages.basis_trial import Tried
from search.stages.trial import evaluate
from search.stages.workbench import Workbench
from space.axes.architecture import Architecture
from space.enumeration.baselines import baselines


class Contestant(NamedTuple):
    """One student that is to be tried."""

    basis: str
    origin: str
    """Of the baselines."""
    architecture: Architecture


def variants_of(resolved: Resolved) -> dict[str, Resolved]:
    """The run in every basis that is open, coordinates first."""
    variants = [resolved] if resolved.turned is None else [resolved, resolved.turned]
    return {variant.basis.value: variant for variant in variants}


def contestants(resolved: Resolved) -> list[Contestant]:
    """Who has to be tried: every baseline in every basis; nobody if the basis is settled.

    A basis is worth something where hidden is cut, and to untie a head costs something everywhere: each
    may spend the budget as it can.
    """
    variants = variants_of(resolved)
    if len(variants) == 1:
        return []
    return [
        Contestant(name, origin, architecture)
        for name, one in variants.items()
        for origin, architecture in baselines(one.space, one.axis_map.teacher).items()
    ]


def try_out(contestant: Contestant, bench: Workbench, advance: Callable[[int], None]) -> Tried:
    """Score one hand-made student at rung 1, where all learn from the same batches.

    Args:
        contestant: who.
        bench: of its basis.
        advance: told the tokens of each step.
    """
    loss: float | None
    try:
        loss = evaluate(bench, contestant.architecture, 1, advance).values["loss"]
    except CandidateError:
        loss = None
    return Tried(
        contestant.basis,
        contestant.origin,
        contestant.architecture.label,
        bench.space.parameters_of(contestant.architecture),
        loss,
    )
