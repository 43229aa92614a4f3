"""Searches on the table: the search itself, with its rungs and promotion, in a second instead of an hour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.storages import InMemoryStorage

from search.rungs.bracket import Bracket, Rule
from search.rungs.loop import Search, SearchTask, rungs_in
from search.rungs.rung import Rung
from search.settings.bracket_plan import plan_bracket, tokens_spent
from search.settings.config import RunConfig
from search.settings.resolved import Resolved
from search.stages.retraining import promoted_of
from search.terminal.console import Console
from space.enumeration.hand_made import baselines
from studies.exhaustive.table import Lookup, Table
from studies.exhaustive.work import FINAL, TOKENS


@dataclass(frozen=True)
class Way:
    """How a search is done, where it differs from the default."""

    name: str
    sampler: str | None = None
    rule_of: Callable[[Sequence[Rung]], Rule] | None = None
    """Who goes up first, as far as the rungs are filled."""
    promoted_by_rule: bool = False
    """Whether it says who is retrained, too."""
    random_every: int | None = None
    rungs: tuple[int, ...] = TOKENS[:-1]
    """Tokens of those that are used."""
    reserve: bool = True
    """Whether candidates are carried up beyond the plan."""


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    label: str
    regret: float
    """Loss after retraining above the best of the space, nats per token."""
    search_tokens: int
    """Of short distillation."""
    tokens: int
    """And of retraining the promoted."""


def config_of(resolved: Resolved, way: Way, search_tokens: int, seed: int) -> RunConfig:
    """The configuration of a search of so many tokens."""
    plan = plan_bracket(search_tokens, way.rungs, len(resolved.space))
    return replace(
        resolved.config,
        sampler=way.sampler or resolved.config.sampler,
        trials=plan.trials,
        rung_tokens=plan.rung_tokens,
        rung_candidates=plan.rung_candidates,
        search_tokens=search_tokens if way.reserve else plan.planned_tokens,
        promote=min(resolved.config.promote, plan.rung_candidates[-1]),
        seed=seed,
    )


def replay(resolved: Resolved, table: Table, way: Way, search_tokens: int, seed: int) -> Found:
    """Search on a table.

    Args:
        resolved: whose space was tabled.
        table: of one seed of the text.
        way: how.
        search_tokens: of all short distillations, at most.
        seed: of the search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = config_of(resolved, way, search_tokens, seed)
    task = SearchTask(config, resolved.space, baselines(resolved.space, resolved.axis_map.teacher))
    rungs = rungs_in(InMemoryStorage(), config, resolved.space)
    used_rungs = [0, *(TOKENS.index(tokens) + 1 for tokens in config.rung_tokens)]
    search = Search(task, rungs, Lookup(table, used_rungs), Console(quiet=True))
    search.bracket = _bracket(search.bracket, way)
    search.run()
    top = rungs[-1].complete()
    promoted = promoted_of(top, config)
    if way.promoted_by_rule and search.bracket.rule is not None:
        promoted = [top[place] for place in search.bracket.rule(top)[: config.promote]]
    chosen = min(promoted, key=lambda record: table.final[record.label]).label
    used = tokens_spent(config.rung_tokens, [len(rung.records()) for rung in rungs[1:]])
    retrained = len(promoted) * TOKENS[FINAL - 1]
    return Found(chosen, table.final[chosen] - table.final[table.best], used, used + retrained)


def _bracket(bracket: Bracket, way: Way) -> Bracket:
    every = bracket.random_every if way.random_every is None else way.random_every
    rule = None if way.rule_of is None else way.rule_of(bracket.rungs)
    return replace(bracket, rule=rule, random_every=every)
