"""What each way to distil is worth.

``python -m studies.distillation`` prunes two teachers in width and in depth, trains each student for 48
steps of 2048 tokens in every way that ``variants`` names, on the text of three seeds, appends each result
to ``results.jsonl`` beside this file as it comes, goes on where it stopped, and writes ``RESULTS.md``.
``--table`` only writes it; ``--teacher`` takes one of the teachers, so that two processes can share the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from studies.bench.apart import apart
from studies.bench.results import Row, effect, markdown, spread
from studies.bench.setting import SETTINGS, STEP_TOKENS
from studies.distillation.variants import PAPER, REFERENCES, SEEDS, STEPS
from studies.distillation.work import HERE, RESULTS, work

_INTRODUCTION = f"""# Distillation: what was measured

Validation loss in nats per token; {STEPS} steps of {STEP_TOKENS} tokens unless a row says otherwise; mean and
standard deviation over three orders of the text. Rates are multiples of the rule's; where several were
tried, the first seed chose. The effect is the difference to the first row, seed by seed. Written by
`python -m studies.distillation --table` from `results.jsonl`.

Where the paper (arXiv 2407.14679) has the same comparison, its own loss stands beside. Of its temperatures
0.1, 0.5, 1 and 3 the best is 1. At equal compute (table 11) its HellaSwag and MMLU are 46.2 and 24.4 from
random weights, 50.9 and 24.6 pruned and trained on text, 51.0 and 37.8 pruned and distilled. With equal
FLOPs, training on text goes on for as many more steps as a live teacher's forward passes would have paid
for; a cached teacher runs once for all.
"""


def tables() -> str:
    """A table for each study and teacher: mean and standard deviation over seeds, and the effect."""
    parts = [_INTRODUCTION]
    rows = RESULTS.rows()
    for study, reference in REFERENCES.items():
        for teacher in SETTINGS:
            found = [row for row in rows if (row["study"], row["teacher"]) == (study, teacher)]
            if found:
                parts += [f"## {study}, {teacher}\n", _table(study, found, reference), ""]
    return "\n".join(parts)


def _table(study: str, rows: Sequence[Row], reference: str) -> str:
    chosen = {name: _at_best_rate(rows, name) for name in dict.fromkeys(row["variant"] for row in rows)}
    after = {name: {row["seed"]: row["after"] for row in some} for name, some in chosen.items()}
    order = sorted(after, key=lambda name: (name != reference, sum(after[name].values()) / len(after[name])))
    columns = {
        "": {name: name for name in order},
        "rate": {name: f"{chosen[name][0]['rate']:g}" for name in order},
        "steps": {name: str(chosen[name][0]["steps"]) for name in order},
        "bytes a token": {name: str(chosen[name][0].get("bytes", "")) for name in order},
        "loss": {name: spread(list(after[name].values())) for name in order},
        "effect": {
            name: effect(after[name], after[reference]) if name != reference else "" for name in order
        },
        "paper": {name: f"{PAPER[study, name]:.3f}" if (study, name) in PAPER else "" for name in order},
    }
    shown = {head: column for head, column in columns.items() if any(column.values())}
    return markdown(list(shown), [[column[name] for column in shown.values()] for name in order])


def _at_best_rate(rows: Sequence[Row], name: str) -> list[Row]:
    """The runs of a variant at the rate that was best with the first seed."""
    mine = [row for row in rows if row["variant"] == name]
    best = min((row for row in mine if row["seed"] == SEEDS[0]), key=lambda row: row["after"])["rate"]
    return [row for row in mine if row["rate"] == best]


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
