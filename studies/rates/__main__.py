"""The peak rate that a range test finds beside the rule's, and whether the best rate moves with the length.

``python -m studies.rates`` trains students in each basis, cut to 60% of their teacher, for 16, 64
and 160 steps of 2048 tokens at rates from an eighth of the rule's to four times it, on three orders of the
text. It appends each result to ``results.jsonl`` beside this file as it comes, goes on where it stopped,
and writes ``RESULTS.md`` (``--table`` alone writes it without training). By default the teachers are the two
small ones; ``--model DIR --data FILE`` takes another.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence

from space.enumeration.hand_made import UNIFORM
from studies.bench.apart import apart
from studies.bench.results import Row, effect, markdown, spread
from studies.bench.setting import SETTINGS, STEP_TOKENS
from studies.rates.fit import Curve, best_exponent, factor_found, length_exponent, mean_curve
from studies.rates.work import BASES, EXPONENTS, HERE, LENGTHS, RESULTS, SEEDS, Asked, curves_of, work

Curves = Mapping[int, Mapping[int, Curve]]
"""Losses by steps, seed and exponent."""


def tables() -> str:
    """For each teacher and basis: losses by rate and length; then what the fits say."""
    rows = RESULTS.rows()
    parts = [
        "# Peak learning rates: what was measured\n",
        "Validation loss in nats per token of a student cut to 60% of its teacher and repaired by",
        "least squares: forward KL, AdamW, cosine schedule, mean and standard deviation over the",
        "orders of the text (one where no deviation is given), after so many steps. *The rule* of",
        "these tables is the one that the study began with, by size alone: 3e-3 at a million",
        "parameters, 1e-4 at four billion. *Best* is the lowest point of a parabola in the logarithm",
        "of the rate through the best mean and its neighbours, as a multiple of the rule's rate; ≤",
        "and ≥ stand where the best is at the edge of what was tried. *Found* is the loss at the rate",
        "that a range test of the fewest steps finds, less that",
        "at the rule's, order by order. Written by `python -m studies.rates --table` from `results.jsonl`.\n",
    ]
    groups: dict[tuple[str, ...], Curves] = {}
    for group in dict.fromkeys(map(_group, rows)):
        found = [row for row in rows if _group(row) == group]
        before = found[0]["before"]
        curves = groups[group] = curves_of(found)
        parts += [f"## {', '.join(group)}, {found[0]['parameters']:,} parameters\n"]
        parts += [f"The rule's rate is {found[0]['rule']:.2e}; straight after pruning {before:.3f}.\n"]
        parts += [_table(before, curves), ""]
    return "\n".join([*parts, *_law(groups)])


def _group(row: Row) -> tuple[str, ...]:
    return row["teacher"], row["basis"], row["student"], f"steps of {row['step_tokens']} tokens"


def _table(before: float, curves: Curves) -> str:
    lengths = sorted(curves)
    exponents = sorted({key for seeds in curves.values() for curve in seeds.values() for key in curve})
    lines = [
        [f"{2.0**key:g}", *(_losses(curves[steps], key) for steps in lengths)] for key in reversed(exponents)
    ]
    found = {seed: factor_found(curve, before) for seed, curve in curves[lengths[0]].items()}
    lines.append(["best", *(_best(curves[steps]) for steps in lengths)])
    lines.append(["found", *(_gain(curves[steps], found) for steps in lengths)])
    factors = ", ".join(f"{2.0**key:g}" for key in found.values())
    table = markdown(["rate over the rule's", *(f"{steps} steps" for steps in lengths)], lines)
    return f"{table}\n\nFound on each order, over the rule's: {factors}."


def _losses(seeds: Mapping[int, Curve], exponent: int) -> str:
    losses = [curve[exponent] for curve in seeds.values() if exponent in curve]
    if not losses:
        return ""
    return spread(losses) if all(map(math.isfinite, losses)) else "diverged"


def _best(seeds: Mapping[int, Curve]) -> str:
    curve = mean_curve(seeds)
    best = best_exponent(curve)
    edge = "≤ " if best == min(curve) else "≥ " if best == max(curve) else ""
    return f"{edge}{2.0**best:.2f}"


def _gain(seeds: Mapping[int, Curve], found: Mapping[int, int]) -> str:
    """The loss at the found rates less that at the rule's, where both were run and did not diverge."""
    at_found = {seed: curve[found[seed]] for seed, curve in seeds.items() if found.get(seed) in curve}
    at_rule = {seed: curve[0] for seed, curve in seeds.items() if math.isfinite(curve.get(0, math.inf))}
    return effect(at_found, at_rule)


def _law(groups: Mapping[tuple[str, ...], Curves]) -> list[str]:
    """How the best rate moves with the length: an exponent for each student, and over all."""
    lines, slopes = [], []
    for group, curves in groups.items():
        points = {steps: best_exponent(mean_curve(seeds)) for steps, seeds in curves.items()}
        if len(points) > 1:
            slopes.append(length_exponent(points))
            lines.append([", ".join(group), f"{slopes[-1]:+.2f}"])
    if not lines:
        return []
    error = f" ± {statistics.stdev(slopes):.2f}" if len(slopes) > 1 else ""
    return [
        "## The best rate by length\n",
        "The exponent of a power law of the best rate in the number of steps, by least squares.\n",
        markdown(["", "exponent"], lines),
        f"\nMean and standard deviation over the students: {statistics.mean(slopes):+.2f}{error}.\n",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--model", nargs="*", default=list(SETTINGS), help="names or directories")
    parser.add_argument("--data", help="text for a teacher that is named by its directory")
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS, help="steps")
    parser.add_argument("--exponents", nargs="*", type=int, default=EXPONENTS, help="powers of two")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--bases", nargs="*", default=[basis.value for basis in BASES])
    parser.add_argument("--students", nargs="*", default=[UNIFORM], help="names of baselines")
    parser.add_argument("--step-tokens", type=int, default=STEP_TOKENS)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args(arguments)
    if not flags.table:
        asked = Asked(
            tuple(flags.lengths),
            tuple(flags.exponents),
            tuple(flags.seeds),
            tuple(flags.bases),
            tuple(flags.students),
            flags.step_tokens,
        )
        apart(work, flags.model, flags.data, asked, flags.threads)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
