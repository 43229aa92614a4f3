"""What each way to distil is worth.

``python -m studies.distillation`` prunes two teachers in width and in depth, trains each student for 48 steps of
2048 tokens in every way that ``variants`` names, on the text of three seeds, appends each result to
``results.jsonl`` beside this file as it comes, goes on where it stopped, and writes ``RESULTS.md``.
``--table`` only writes it; ``--teacher`` takes one of the teachers, so that two processes can share the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from studies.bench.apart import apart
from studies.bench.results import Row, effect, markdown, spread
from studies.bench.setting import SETTINGS, STEP_TOKENS
from studies.distillation.variants import REFERENCES, STEPS
from studies.distillation.work import HERE, RESULTS, work

_PAPER = """## What the paper reports

Of Nemotron students (arXiv 2407.14679), loss in nats per token: forward KL alone 2.107, with cross-entropy
2.117; cross-entropy with cosine 2.134, with reverse KL 2.140, with MSE 2.144 (table 15). Of a 16-layer student of 32:
logits 2.155, with a late block 2.145, with the embedding too 2.141, with the wrong block 2.240 (table 17). Of
the best temperature among 0.1, 0.5, 1 and 3: 1. Of all axes cut: 2.062 pruned and 3.953 from random weights after
the same distillation (table 1). HellaSwag and MMLU at equal compute: 46.2 and 24.4 from random weights, 50.9 and
24.6 pruned and trained on text, 51.0 and 37.8 pruned and distilled (table 11).
"""


def tables() -> str:
    """A table for each study and teacher: mean and standard deviation over seeds, and the effect."""
    parts = [
        "# Distillation: what was measured\n",
        f"Validation loss in nats per token; {STEPS} steps of {STEP_TOKENS} tokens unless a row says otherwise;",
        "mean and standard deviation over three orders of the text. Rates are multiples of the rule's; where several",
        "were tried, the first seed chose. The last column is the difference to the first row, seed by seed. Written",
        "by `python -m studies.distillation --table` from `results.jsonl`.\n",
        _PAPER,
    ]
    rows = RESULTS.rows()
    for study, reference in REFERENCES.items():
        for teacher in SETTINGS:
            found = [row for row in rows if (row["study"], row["teacher"]) == (study, teacher)]
            if found:
                parts += [f"## {study}, {teacher}\n", _table(found, reference), ""]
    return "\n".join(parts)


def _table(rows: Sequence[Row], reference: str) -> str:
    chosen: dict[str, list[Row]] = {}
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        best = min((row for row in mine if row["seed"] == 0), key=lambda row: row["after"])["rate"]
        chosen[name] = [row for row in mine if row["rate"] == best]
    after = {name: {row["seed"]: row["after"] for row in some} for name, some in chosen.items()}
    order = sorted(after, key=lambda name: (name != reference, sum(after[name].values()) / len(after[name])))
    few = any("bytes" in row for row in rows)
    lines = [
        [
            name,
            f"{chosen[name][0]['rate']:g}",
            str(chosen[name][0]["steps"]),
            *([f"{chosen[name][0].get('bytes', '')}"] if few else []),
            spread(list(after[name].values())),
            "" if name == reference else effect(after[name], after.get(reference, {})),
        ]
        for name in order
    ]
    return markdown(["", "rate", "steps", *(["bytes a token"] if few else []), "loss", "effect"], lines)


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
