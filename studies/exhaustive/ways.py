"""The ways to search that the study compares."""

from __future__ import annotations

from collections.abc import Sequence

from search.rung import Record
from studies.exhaustive.replay import Way
from studies.exhaustive.work import TOKENS

#: Of the search, on each seed of the table.
SEARCH_SEEDS = tuple(range(8))
#: Tokens of short distillation that searches are given.
SEARCH_TOKENS = (250_000, 500_000, 1_000_000, 1_750_000)
#: Retraining with all that a run retrains stays within a quarter of what the table took.
QUARTER = SEARCH_TOKENS[-1]
DEFAULT = Way("default")


def by_loss(records: Sequence[Record]) -> list[int]:
    """Places in the order of the loss alone."""
    return sorted(range(len(records)), key=lambda place: records[place].values(("loss",))[0])


SAMPLERS = tuple(Way(name, sampler=name) for name in ("tpe", "gp", "nsga2", "qmc", "random"))
RULES = (
    Way("by loss alone", rule=by_loss),
    Way("nobody drawn by lot", random_every=0),
    Way("every second drawn by lot", random_every=2),
    Way("nobody carried up beyond the plan", reserve=False),
    Way(f"one rung of {TOKENS[0]:,} tokens", rungs=TOKENS[:1]),
    Way(f"one rung of {TOKENS[1]:,} tokens", rungs=TOKENS[1:2]),
)
