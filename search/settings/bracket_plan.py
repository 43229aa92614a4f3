"""Plan all rungs from one number: the tokens that the search may spend.

The rungs share the tokens equally, and each trains a candidate ``ETA`` times as long as the rung below:
many candidates briefly, few for longer (successive halving, arXiv 1502.07943). A reserve is kept for extra
promotions, where the losses at a low rung turn out to be misleading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from space.input_error import InputError

#: Tokens of a rung over those of the rung below; the least ratio of retraining to the last rung.
ETA = 4
#: Share of the search tokens that is held in reserve.
RESERVE = 0.2
#: The fewest candidates that a search needs at the first rung and at the last.
FEWEST_FIRST, _FEWEST_LAST = 4, 3
#: Architectures scored straight after pruning for each that is distilled; a score takes one validation pass.
SCORED = 2
#: How often the pool of a nested search is scored; but for the last time, it is halved then.
STAGES = 4
#: Candidates that the pool begins with, as far as there are so many, and the fewest that are left.
LARGEST_POOL, SMALLEST_POOL = 48, 6


@dataclass(frozen=True)
class BracketPlan:
    """The number of candidates and the training tokens of every rung."""

    trials: int
    """Architectures scored at rung 0."""
    rung_tokens: tuple[int, ...]
    """Training tokens of each candidate at rung 1, 2, …"""
    rung_candidates: tuple[int, ...]
    """Candidates at rung 1, 2, …"""
    reserve_tokens: int
    """Tokens for extra candidates, promoted where the losses at a rung are misleading."""

    @property
    def planned_tokens(self) -> int:
        """Training tokens of all planned candidates, without the reserve."""
        return tokens_spent(self.rung_tokens, self.rung_candidates)


def tokens_spent(rung_tokens: Sequence[int], candidates: Sequence[int]) -> int:
    """Return the training tokens of all candidates at all rungs of short distillation."""
    return sum(tokens * number for tokens, number in zip(rung_tokens, candidates, strict=True))


def rungs_up_to(first: int, retraining: int) -> tuple[int, ...]:
    """Return the training tokens of each rung, from the first up to retraining.

    Args:
        first: training tokens at rung 1.
        retraining: training tokens of one retraining; rungs above the first have at most a quarter of them.
    """
    rungs = [first]
    while rungs[-1] * ETA * ETA <= retraining:
        rungs.append(rungs[-1] * ETA)
    return tuple(rungs)


def tokens_for(first_candidates: int, rung_tokens: Sequence[int]) -> int:
    """Return the search tokens for this many candidates at the first rung and at least one at the last."""
    most = max(first_candidates * rung_tokens[0], rung_tokens[-1])
    return math.ceil(most * len(rung_tokens) / (1 - RESERVE))


def plan_bracket(
    search_tokens: int,
    rung_tokens: Sequence[int],
    architectures: int,
    trials: int | None = None,
    every_rung: bool = False,
) -> BracketPlan:
    """Divide the search tokens among the rungs; upper rungs with too few candidates are dropped.

    If the space is too small to use up the share of a rung, the rest goes to the rungs above.

    Args:
        search_tokens: training tokens of all short distillations together.
        rung_tokens: training tokens of one candidate at rung 1, 2, …, ascending.
        architectures: how many architectures the search space has.
        trials: architectures to score at rung 0, if the user set the number.
        every_rung: whether the user chose the rungs, so that none may be dropped.

    Raises:
        InputError: the tokens are too few for a search.
    """
    most = min(architectures, trials or architectures)
    fewest_first, fewest_last = min(FEWEST_FIRST, most), min(_FEWEST_LAST, most)
    if every_rung:
        fewest_last = 1
    for rungs in range(len(rung_tokens), len(rung_tokens) - 1 if every_rung else 0, -1):
        tokens = tuple(rung_tokens[:rungs])
        candidates = _divide(search_tokens * (1 - RESERVE), tokens, most)
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


def plan_nested(search_tokens: int, architectures: int, trials: int | None = None) -> BracketPlan:
    """Plan a nested search: its rungs are the stages of one training, at equal distances.

    The tokens of a rung are those that the shared weights have been trained on by then, by all together.

    Args:
        search_tokens: training tokens of the shared weights in all.
        architectures: how many architectures the search space has.
        trials: architectures to score at rung 0, if the user set the number.
    """
    pools = [min(LARGEST_POOL, architectures, trials or architectures)]
    while len(pools) < STAGES:
        pools.append(halved(pools[-1]))
    tokens = tuple(search_tokens * stage // STAGES for stage in range(1, STAGES + 1))
    return BracketPlan(min(architectures, trials or SCORED * pools[0]), tokens, tuple(pools), 0)


def halved(pool: int) -> int:
    """Return how many of a nested search's pool go on."""
    return min(pool, max(SMALLEST_POOL, -(-pool // 2)))


def _divide(tokens: float, rung_tokens: Sequence[int], most: int) -> tuple[int, ...]:
    """Candidates of each rung: equal shares of the tokens, and no rung has more than the rung below."""
    candidates: list[int] = []
    for place, each in enumerate(rung_tokens):
        share = (tokens - tokens_spent(rung_tokens[:place], candidates)) / (len(rung_tokens) - place)
        candidates.append(min(most, int(share / each)))
        most = candidates[-1]
    return tuple(candidates)
