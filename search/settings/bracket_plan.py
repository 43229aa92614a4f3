"""The whole bracket from one number: how many tokens the search may spend.

Rungs grow by a factor, and each spends alike: many candidates shortly, few for longer (successive halving,
arXiv 1502.07943). A part is held back, for candidates that are carried up where a low rung misleads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from space.input_error import InputError

#: Each rung has so many times the tokens of the one before, and retraining at least so many times the last's.
ETA = 4
#: Held back, as a share of all tokens.
_RESERVE = 0.2
#: Fewer candidates than these are no search, at the first rung and at the last.
FEWEST_FIRST, _FEWEST_LAST = 4, 3
#: Scored straight after pruning for each that is distilled, which costs a pass over the validation blocks.
SCORED = 2


@dataclass(frozen=True)
class BracketPlan:
    """How many candidates each rung takes, and for how many tokens."""

    trials: int
    """At rung 0."""
    rung_tokens: tuple[int, ...]
    """Of each candidate at rung 1, 2, …"""
    rung_candidates: tuple[int, ...]
    """Of rung 1, 2, …"""
    reserve_tokens: int
    """For candidates beyond these, where a rung misleads."""

    @property
    def planned_tokens(self) -> int:
        """Of all candidates, without the reserve."""
        return tokens_spent(self.rung_tokens, self.rung_candidates)


def tokens_spent(rung_tokens: Sequence[int], candidates: Sequence[int]) -> int:
    """Tokens of so many candidates at each rung of short distillation."""
    return sum(tokens * number for tokens, number in zip(rung_tokens, candidates, strict=True))


def rungs_up_to(first: int, retraining: int) -> tuple[int, ...]:
    """Tokens of the rungs between the first and retraining.

    Args:
        first: tokens of rung 1.
        retraining: tokens of a retraining; the last rung has at most a quarter of them.
    """
    rungs = [first]
    while rungs[-1] * ETA * ETA <= retraining:
        rungs.append(rungs[-1] * ETA)
    return tuple(rungs)


def tokens_for(first_candidates: int, rung_tokens: Sequence[int]) -> int:
    """Tokens of a search whose first rung takes so many candidates, and whose last takes one at least."""
    most = max(first_candidates * rung_tokens[0], rung_tokens[-1])
    return math.ceil(most * len(rung_tokens) / (1 - _RESERVE))


def plan_bracket(
    search_tokens: int,
    rung_tokens: Sequence[int],
    architectures: int,
    trials: int | None = None,
    every_rung: bool = False,
) -> BracketPlan:
    """Spread tokens over rungs; rungs that too few candidates would reach are left out.

    What a small space leaves of a rung's share goes to the rungs above.

    Args:
        search_tokens: of all short distillations.
        rung_tokens: of one candidate at rung 1, 2, …, ascending.
        architectures: of the space.
        trials: at rung 0, if the user says so.
        every_rung: whether the user asked for these rungs; none is left out then.

    Raises:
        InputError: the tokens are too few for a search.
    """
    most = min(architectures, trials or architectures)
    fewest_first, fewest_last = min(FEWEST_FIRST, most), min(_FEWEST_LAST, most)
    if every_rung:
        fewest_last = 1
    for rungs in range(len(rung_tokens), len(rung_tokens) - 1 if every_rung else 0, -1):
        tokens = tuple(rung_tokens[:rungs])
        candidates = _spread(search_tokens * (1 - _RESERVE), tokens, most)
        if candidates[0] >= fewest_first and candidates[-1] >= fewest_last:
            scored = trials or SCORED * candidates[0]
            reserve = search_tokens - tokens_spent(tokens, candidates)
            return BracketPlan(min(architectures, scored), tokens, candidates, reserve)
    needed = tuple(rung_tokens if every_rung else rung_tokens[:1])
    raise InputError(
        f"A search has to distil at least {fewest_first} candidates, and one at its last rung",
        f"{search_tokens:,} tokens are not enough for rungs of {', '.join(f'{t:,}' for t in needed)}",
        f"Allow --search-tokens {tokens_for(fewest_first, needed)}, or name fewer or smaller --rung-tokens",
    )


def _spread(tokens: float, rung_tokens: Sequence[int], most: int) -> tuple[int, ...]:
    """Candidates of each rung, all rungs spending alike, none taking more than the one below."""
    candidates: list[int] = []
    for place, each in enumerate(rung_tokens):
        share = (tokens - tokens_spent(rung_tokens[:place], candidates)) / (len(rung_tokens) - place)
        candidates.append(min(most, int(share / each)))
        most = candidates[-1]
    return tuple(candidates)
