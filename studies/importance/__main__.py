"""What each way to measure importance is worth, straight after pruning and after a short distillation.

``python -m studies.importance`` prunes two teachers in every way that ``variants`` names, distils each
student for 32 steps of 2048 tokens on the text of three seeds, appends each result to ``results.jsonl``
beside this file as it comes, goes on where it stopped, and writes ``RESULTS.md``. ``--table`` only writes it;
``--teacher`` and ``--study`` take some of the work, so that several processes can share it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from studies.bench.apart import apart
from studies.bench.results import Row, effect, markdown, spread
from studies.bench.setting import SETTINGS, STEP_TOKENS
from studies.importance.variants import REFERENCES
from studies.importance.work import HERE, RESULTS, STEPS, work


def tables() -> str:
    """A table for each study and teacher: mean and standard deviation over seeds, and the effect."""
    parts = [
        "# Importance: what was measured\n",
        f"Validation loss in nats per token; {STEPS} steps of {STEP_TOKENS} tokens, forward KL; mean and",
        "standard deviation over three orders of the text. The last column is the difference to the first",
        "row, seed by seed. Written by `python -m studies.importance --table` from `results.jsonl`.\n",
    ]
    rows = RESULTS.rows()
    for study, reference in REFERENCES.items():
        for teacher in SETTINGS:
            found = [row for row in rows if (row["study"], row["teacher"]) == (study, teacher)]
            if found:
                parts += [f"## {study}, {teacher}\n", _table(found, reference), ""]
    return "\n".join(parts)


def _table(rows: Sequence[Row], reference: str) -> str:
    after: dict[str, dict[int, float]] = {}
    before: dict[str, list[float]] = {}
    for row in rows:
        after.setdefault(row["variant"], {})[row["seed"]] = row["after"]
        before.setdefault(row["variant"], []).append(row["before"])
    order = sorted(after, key=lambda name: (name != reference, sum(after[name].values()) / len(after[name])))
    lines = [
        [
            name,
            f"{sum(before[name]) / len(before[name]):.3f}",
            spread(list(after[name].values())),
            "" if name == reference else effect(after[name], after.get(reference, {})),
        ]
        for name in order
    ]
    return markdown(["", "after pruning", "after distillation", "effect"], lines)


def main() -> int:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--teacher", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--study", nargs="*", choices=REFERENCES, default=list(REFERENCES))
    asked = parser.parse_args()
    if not asked.table:
        apart(work, asked.teacher, asked.study)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
