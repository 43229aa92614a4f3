"""Every way to search, replayed on the table of every seed, each result written as it comes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict

from search.settings.resolved import Resolved
from studies.bench.results import Results
from studies.exhaustive.replay import Way, replay
from studies.exhaustive.table import Table
from studies.exhaustive.ways import DEFAULT, RULES, SAMPLERS, SEARCH_SEEDS, SEARCH_TOKENS
from studies.exhaustive.work import HERE

REPLAYS = Results(HERE / "replays.jsonl", ("way", "search_limit", "text", "seed"))


def asked() -> Iterator[tuple[Way, int, int]]:
    """Way, tokens and seed of every search on one table."""
    for limit in SEARCH_TOKENS:
        for way in (DEFAULT, *SAMPLERS, *RULES):
            yield from ((way, limit, seed) for seed in SEARCH_SEEDS)


def search_all(resolved: Resolved, tables: list[Table]) -> None:
    """Search what has not been searched."""
    for way, limit, seed in asked():
        for table in tables:
            about = {"way": way.name, "search_limit": limit, "text": table.seed, "seed": seed}
            if REPLAYS.missing([about]):
                found = replay(resolved, table, way, limit, seed)
                REPLAYS.add({**about, **asdict(found)})
        print(f"{way.name}, {limit:,} tokens, seed {seed}", file=sys.stderr, flush=True)
