"""Nested training on a space whose truth is known: how well slices of shared weights are in order.

``python -m studies.nested`` trains all architectures of the exhaustive study in shared weights, each way on
three orders of the text, a process for each of two; scores all slices at every quarter of the tokens,
retrains the best from there, and compares with the table of that study. It appends each result to
``results.jsonl``, goes on where it stopped, and writes ``RESULTS.md`` (``--table`` alone writes it).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from scipy.stats import kendalltau

from studies.bench.apart import processes
from studies.bench.results import Row, markdown, spread
from studies.exhaustive.table import Table
from studies.exhaustive.work import RESULTS as EXHAUSTIVE
from studies.exhaustive.work import SEEDS as TABLES
from studies.nested.work import HERE, RESULTS, SEARCHED, SEEDS, WAYS, work

_PROCESSES = 2


def final_losses() -> dict[str, float]:
    """After retraining from pruned weights, by label: the mean of the seeds of the exhaustive study."""
    tables = [Table.of(EXHAUSTIVE.rows(), seed).final for seed in TABLES]
    return {label: statistics.mean(table[label] for table in tables) for label in tables[0]}


def tables() -> str:
    """Orders and losses, way by way."""
    rows, final = RESULTS.rows(), final_losses()
    parts = [
        "# Nested training: what was measured\n",
        f"All {len(final)} architectures of the exhaustive study as slices of one set of weights, one drawn",
        "at each step. *τ* is Kendall's correlation of the slices' losses with those that the same",
        "architectures have after 196,608 tokens alone from pruned weights (mean of two seeds), *regret* how",
        "much higher than the best the one with the lowest loss ends there, in nats per token. *Retrained*",
        "is the loss of the best slice after as many tokens from the shared weights, beside that of the same",
        "architecture from pruned weights. Mean and standard deviation over the orders of the text.",
        "Written by `python -m studies.nested --table` from `results.jsonl`.\n",
    ]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        parts += [f"## {way}\n", _stages(own, final), "", _retrained(own, final), ""]
    return "\n".join(parts)


def _stages(rows: Sequence[Row], final: dict[str, float]) -> str:
    lines = []
    scored = [row for row in rows if not row["label"]]
    for tokens in dict.fromkeys(row["tokens"] for row in scored):
        same = [row["losses"] for row in scored if row["tokens"] == tokens]
        taus = [order_against(losses, final) for losses in same]
        regrets = [final[min(losses, key=losses.__getitem__)] - min(final.values()) for losses in same]
        best = [min(losses.values()) for losses in same]
        lines.append([f"{tokens:,}", spread(taus), spread(regrets), spread(best)])
    return markdown(["tokens", "τ", "regret", "lowest loss"], lines)


def order_against(losses: dict[str, float], final: dict[str, float]) -> float:
    """Return Kendall's τ between two sets of losses by label."""
    labels = sorted(losses.keys() & final.keys())
    return float(kendalltau([losses[one] for one in labels], [final[one] for one in labels]).statistic)


def _retrained(rows: Sequence[Row], final: dict[str, float]) -> str:
    done = [row for row in rows if row["label"]]
    if not done:
        return ""
    alone = spread([final[row["label"]] for row in done])
    return f"Retrained {spread([row['loss'] for row in done])}; from pruned weights {alone}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--tokens", type=int, default=SEARCHED, help="of each shared training")
    parser.add_argument("--chosen", type=int, default=1, help="how many are retrained after it")
    flags = parser.parse_args(arguments)
    if not flags.table:
        with processes(_PROCESSES) as pool:
            jobs = [pool.submit(work, seed, flags.ways, flags.tokens, flags.chosen) for seed in flags.seeds]
            for job in jobs:
                job.result()
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
