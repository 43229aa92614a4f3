"""Every order of the candidates against every later one, in one table: agreement, and the price of trust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.terminal import format as words

_NAMES = {"parameters": "parameter count", "rung 0": "rung 0, straight after pruning"}


@dataclass(frozen=True)
class RankTable:
    """Rows are the orders that foretell, columns those that are foretold."""

    columns: list[tuple[str, str]]
    """Name, and of how many candidates."""
    rows: list[tuple[str, list[tuple[str, str] | None]]]
    """Name, and for each column Kendall's tau and the regret; None where there is no such pair."""


def rank_table(summary: dict[str, Any]) -> RankTable | None:
    """The table of all that is foretold from parameters and rung 0 on; None where nothing is."""
    pairs = {(pair["from"], pair["to"]): pair for pair in summary["rank_correlation"]}
    pairs = {orders: pair for orders, pair in pairs.items() if pair["regret"] is not None}
    before = list(dict.fromkeys(first for first, _ in pairs))
    after = [name for name in dict.fromkeys(second for _, second in pairs) if name != "rung 0"]
    if not after:
        return None
    return RankTable(
        [(name, _candidates([pair for (_, to), pair in pairs.items() if to == name])) for name in after],
        [(_NAMES.get(one, one), [_cell(pairs.get((one, name))) for name in after]) for one in before],
    )


def _candidates(pairs: list[dict[str, Any]]) -> str:
    numbers = {pair["candidates"] for pair in pairs}
    low, high = min(numbers), max(numbers)
    return f"{low} candidates" if low == high else f"{low} to {high} candidates"


def _cell(pair: dict[str, Any] | None) -> tuple[str, str] | None:
    if pair is None:
        return None
    return words.signed(pair["kendall_tau"], 2), words.nats(pair["regret"])
