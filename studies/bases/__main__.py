"""Tokens of distillation that each basis of hidden needs to reach the same loss.

``python -m studies.bases`` trains width-pruned students of two teachers, one of which ties its head to the
embedding, by forward KL, for up to 160 steps of 2048 tokens; it appends each result to ``results.jsonl``
beside this file as it comes, goes on where it stopped, and writes ``RESULTS.md`` (``--table`` alone writes
it without training; ``--teacher`` takes some of the work, so that several processes can share it).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise

from studies.bases.variants import Variant
from studies.bases.work import HERE, RESULTS, work
from studies.bench.apart import apart
from studies.bench.results import Row, markdown, spread
from studies.bench.setting import SETTINGS, STEP_TOKENS

Kind = tuple[str, bool, bool]
"""Basis, with the norm gain, repaired."""
Curve = Mapping[int, float]
"""Loss by steps of distillation, each with a schedule of its own."""


def share_of_tokens(curve: Curve, mark: int, wanted: float) -> float:
    """Which share of the mark's steps a basis needs for a loss.

    Between the measured numbers of steps the loss is taken as linear in their logarithm; outside of them
    the nearest two go on.

    Args:
        curve: of the basis.
        mark: steps with which coordinates reach the loss.
        wanted: the loss.
    """
    pairs = list(pairwise(sorted(curve)))
    first, second = next((pair for pair in pairs if curve[pair[1]] <= wanted), pairs[-1])
    slope = (curve[second] - curve[first]) / math.log(second / first)
    return first * math.exp((wanted - curve[first]) / slope) / mark


def tables() -> str:
    """For each teacher, size and rate: losses by basis, and the share of tokens."""
    parts = [
        "# Bases of hidden: what was measured\n",
        "Validation loss in nats per token, mean and standard deviation over three orders of the text (one",
        "where no deviation is given), forward KL, each length with its own schedule. stories260K has its",
        "head tied; with `head apart` it was a matrix of its own in every basis. After",
        f"so many steps of {STEP_TOKENS} tokens. The last columns are the share of coordinates' tokens with",
        "which a basis reaches what coordinates reach with the most (without and with repairs), interpolated",
        "in the logarithm of the steps, seed by seed. Written by `python -m studies.bases --table` from",
        "`results.jsonl`.\n",
    ]
    rows = RESULTS.rows()
    keys = dict.fromkeys((row["teacher"], row["size"], row["rate"]) for row in rows)
    for teacher, size, rate in sorted(keys):
        found = [r for r in rows if (r["teacher"], r["size"], r["rate"]) == (teacher, size, rate)]
        lengths = Variant("weighted", True, size, rate).lengths
        parts += [f"## {teacher}, {size} cut, {rate} rate\n", _table(found, lengths), ""]
    return "\n".join(parts)


def _table(rows: Sequence[Row], lengths: Sequence[int]) -> str:
    curves: dict[Kind, dict[int, dict[int, float]]] = {}
    for row in rows:
        kind = row["basis"], row["gain"], row["repaired"]
        curves.setdefault(kind, {}).setdefault(row["seed"], {})[row["steps"]] = row["after"]
    lines = []
    for kind, seeds in sorted(curves.items()):
        basis, gain, repaired = kind
        before = next(r["before"] for r in rows if (r["basis"], r["gain"], r["repaired"]) == kind)
        losses = [[c[steps] for c in seeds.values() if steps in c] for steps in lengths]
        lines.append(
            [
                f"{basis}{', gain' if gain else ''}{', repaired' if repaired else ''}",
                f"{before:.3f}",
                *(spread(of) if of else "" for of in losses),
                _shares(lengths, seeds, curves.get(("coordinate", False, False), {})),
                _shares(lengths, seeds, curves.get(("coordinate", False, True), {})),
            ]
        )
    head = [f"{steps} steps" for steps in lengths]
    return markdown(["", "after pruning", *head, "share of tokens", "of repaired"], lines)


def _shares(lengths: Sequence[int], seeds: Mapping[int, Curve], reference: Mapping[int, Curve]) -> str:
    """Mean over the seeds that were run at all lengths."""
    whole = [s for s in seeds if {*lengths} <= seeds[s].keys() and lengths[-1] in reference.get(s, {})]
    shares = [
        share_of_tokens({n: seeds[seed][n] for n in lengths}, lengths[-1], reference[seed][lengths[-1]])
        for seed in whole
    ]
    return f"{statistics.mean(shares):.2f}" if shares else ""


def main() -> int:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--teacher", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    asked = parser.parse_args()
    if not asked.table:
        apart(work, asked.teacher)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
