"""The ways to search that the study compares."""

from __future__ import annotations

from collections.abc import Sequence

from search.foresight.foresight import forecast
from search.rungs.bracket import Rule
from search.rungs.evaluation import FinishedTrial
from search.rungs.rung import Rung
from studies.exhaustive.replay import Way
from studies.exhaustive.work import TEACHER_LOSS, TOKENS

#: Of the search, on each seed of the table.
SEARCH_SEEDS = tuple(range(8))
#: Tokens of short distillation that searches are given.
SEARCH_TOKENS = (250_000, 500_000, 1_000_000, 1_750_000)
#: Retraining with all that a run retrains stays within a quarter of what the table took.
QUARTER = SEARCH_TOKENS[-1]
DEFAULT = Way("default")


def by_loss(rungs: Sequence[Rung]) -> Rule:
    """In the order of the loss alone."""
    return lambda records: _order([record.values(("loss",))[0] for record in records])


def by_forecast(rungs: Sequence[Rung]) -> Rule:
    """In the order of what is forecast for their retraining, from all that the rungs have by now."""

    def rule(records: Sequence[FinishedTrial]) -> list[int]:
        found = forecast(curves_of(rungs), TOKENS[-1], TEACHER_LOSS)
        return _order([found[record.label].loss for record in records])

    return rule


def curves_of(rungs: Sequence[Rung]) -> dict[str, list[tuple[int, float]]]:
    """(tokens, loss) at the end of each rung, by label."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for rung in rungs:
        for record in rung.complete():
            assert record.evaluation is not None
            curves.setdefault(record.label, []).append(
                (record.evaluation.tokens, record.values(("loss",))[0])
            )
    return curves


def _order(values: Sequence[float]) -> list[int]:
    return sorted(range(len(values)), key=values.__getitem__)


SAMPLERS = tuple(Way(name, sampler=name) for name in ("tpe", "gp", "nsga2", "qmc", "random"))
RULES = (
    Way("by loss alone", rule_of=by_loss),
    Way("by forecast, at the end too", rule_of=by_forecast, promoted_by_rule=True),
    Way("by loss, at the end too", rule_of=by_loss, promoted_by_rule=True),
    Way("nobody drawn by lot", random_every=0),
    Way("every second drawn by lot", random_every=2),
    Way("nobody carried up beyond the plan", reserve=False),
    Way(f"one rung of {TOKENS[0]:,} tokens", rungs=TOKENS[:1]),
    Way(f"one rung of {TOKENS[1]:,} tokens", rungs=TOKENS[1:2]),
)
