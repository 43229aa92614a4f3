"""The plan of a nested search: a pool that is trained in shared weights, and narrowed at equal distances.

The rungs of such a search are the places where its pool is scored and halved. Their tokens are those that the
shared weights have been trained on by then, by all candidates together; nobody is trained alone.
"""

from __future__ import annotations

import os

from search.settings.bracket_plan import SCORED, BracketPlan
from search.settings.flags import Flags
from search.terminal.command import is_multi_process
from space.input_error import InputError

#: How often the pool is scored; but for the last time, it is halved then.
STAGES = 4
#: Candidates that the pool begins with, as far as there are so many, and the fewest that are left.
LARGEST_POOL, SMALLEST_POOL = 48, 6


def plan_nested(search_tokens: int, architectures: int, trials: int | None = None) -> BracketPlan:
    """Return the pool's sizes and the shared training's tokens at every stage.

    Args:
        search_tokens: training tokens of the shared weights in all.
        architectures: how many architectures the search space has.
        trials: architectures to score straight after pruning, if the user set the number.
    """
    most = min(architectures, trials or architectures)
    pools = [min(LARGEST_POOL, most)]
    while len(pools) < STAGES:
        pools.append(min(pools[-1], max(SMALLEST_POOL, -(-pools[-1] // 2))))
    tokens = tuple(search_tokens * stage // STAGES for stage in range(1, STAGES + 1))
    return BracketPlan(min(architectures, trials or SCORED * pools[0]), tokens, tuple(pools), 0)


def check_nested(flags: Flags) -> None:
    """Refuse what does not go with a nested search.

    Raises:
        InputError: a flag that belongs to the other kind of search, or several processes for one training.
    """
    if flags.search != "nested":
        return
    rule = "A nested search trains all candidates in shared weights"
    if flags.rung_tokens:
        raise InputError(
            rule, "--rung-tokens gives each its own training", "Leave it out, or take --search rungs"
        )
    if flags.schedule == "wsd":
        raise InputError(
            rule,
            "--schedule wsd lets each training of a candidate go on from its last",
            "Leave --schedule out, or take --search rungs",
        )
    if set(flags.states) - {"auto", "none"}:
        raise InputError(
            rule, f"--states {' '.join(flags.states)} compares states of one width", "Leave --states out"
        )
    if is_multi_process():
        raise InputError(
            rule,
            f"{os.environ['WORLD_SIZE']} processes were started to train each student together",
            "Start one process for each worker, or take --search rungs",
        )
