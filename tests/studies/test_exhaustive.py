"""The study of a whole space: its table is whole, and what is written is what the table says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from search.settings.resolved import Resolved
from space.enumeration.hand_made import baselines
from studies.exhaustive.replay import Way, config_of, replay
from studies.exhaustive.searches import REPLAYS, asked
from studies.exhaustive.table import Lookup, Table
from studies.exhaustive.tables import tables
from studies.exhaustive.ways import DEFAULT, QUARTER, RULES, SEARCH_SEEDS
from studies.exhaustive.work import FINAL, HERE, RESULTS, SEEDS, TOKENS, order, resolved


@cache
def run() -> Resolved:
    return resolved()


@cache
def table(seed: int) -> Table:
    return Table.of(RESULTS.rows(), seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_table_holds_every_architecture_of_the_space(seed: int) -> None:
    labels = {architecture.label for architecture in run().space.architectures}
    assert len(labels) >= 48
    assert table(seed).rows.keys() == labels == {architecture.label for architecture in order()}
    assert table(seed).tokens == len(labels) * sum(TOKENS)
    assert {a.label for a in baselines(run().space, run().axis_map.teacher).values()} <= labels


@pytest.mark.parametrize("seed", SEEDS)
def test_longer_training_is_better_for_everybody(seed: int) -> None:
    for label in table(seed).rows:
        losses = [table(seed).losses(rung)[label] for rung in range(FINAL + 1)]
        assert losses == sorted(losses, reverse=True)


def test_a_search_with_tokens_for_everybody_ends_with_the_best() -> None:
    """Each goes through every rung, and as many are retrained as there are."""
    everything = len(run().space) * sum(TOKENS[:-1]) * 2
    config = config_of(run(), DEFAULT, everything, seed=0)
    assert config.rung_candidates == (len(run().space),) * 2
    every = replace(run(), config=replace(run().config, promote=99))
    for seed in SEEDS:
        found = replay(every, table(seed), DEFAULT, everything, seed=3)
        assert (found.label, found.regret) == (table(seed).best, 0.0)


def test_a_replay_is_what_was_kept() -> None:
    for row in REPLAYS.rows():
        if (row["way"], row["search_limit"], row["seed"]) == (DEFAULT.name, QUARTER, 0):
            found = replay(run(), table(row["text"]), DEFAULT, QUARTER, 0)
            assert (found.label, found.tokens) == (row["label"], row["tokens"])


def test_the_default_keeps_what_is_promised_of_it() -> None:
    """Within a quarter of the tokens, a hundredth of a nat from the best, below every hand-made baseline."""
    kept = [r for r in REPLAYS.rows() if (r["way"], r["search_limit"]) == (DEFAULT.name, QUARTER)]
    assert len(kept) == len(SEEDS) * len(SEARCH_SEEDS)
    by_hand = [a.label for a in baselines(run().space, run().axis_map.teacher).values()]
    for row in kept:
        final = table(row["text"]).final
        assert final[row["label"]] < min(final[label] for label in by_hand)
        assert row["tokens"] + 4 * TOKENS[-1] <= table(row["text"]).tokens / 4
    assert sum(row["regret"] for row in kept) / len(kept) <= 0.01


def test_every_way_can_be_searched() -> None:
    for way in (Way("random", sampler="random"), *RULES):
        found = replay(run(), table(0), way, 250_000, seed=1)
        assert found.label in table(0).rows
        assert 0 <= found.regret < 0.2
        assert found.search_tokens <= 250_000
    assert len(list(asked())) == len({(way.name, limit, seed) for way, limit, seed in asked()})


def test_the_table_is_looked_up() -> None:
    lookup = Lookup(table(0), (0, 1, 2))
    one = run().space.architectures[0]
    found = lookup.evaluate(one, 1, lambda tokens: None)
    assert (found.values["loss"], found.tokens) == (table(0).losses(1)[one.label], TOKENS[0])


def test_the_results_are_those_of_the_files() -> None:
    by_hand = {name: a.label for name, a in baselines(run().space, run().axis_map.teacher).items()}
    assert (HERE / "RESULTS.md").read_text() == tables([table(seed) for seed in SEEDS], by_hand)
