"""Four ideas beyond the paper, tried out on two teachers.

``python -m studies.ideas`` measures

1. a basis of hidden weighted by the loss's gradient (the Fisher information of the normalised stream)
   instead of the matrices that read it;
2. what a basis for each region of depth could give at most, before distillation;
3. bases for the values of attention heads, before distillation;
4. merging rather than dropping neurons, against least squares over all kept ones.

Students, with head and embedding apart, are distilled for 48 steps of 2048 tokens on the text of three
seeds. It appends each result to ``results.jsonl`` beside this file as it comes, goes on where it stopped, and
writes ``RESULTS.md``. ``--table`` only writes it; ``--teacher`` and ``--seed`` take some of the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from studies.bench.apart import apart
from studies.bench.results import Row, effect, markdown, spread
from studies.bench.setting import SETTINGS, STEP_TOKENS
from studies.ideas.variants import COORDINATE, DROPPED, STUDENTS, WEIGHTED, Variant
from studies.ideas.work import HERE, RESULTS, SEEDS, STEPS, STUDENT, work

_BEFORE = {
    "regions": "2. A basis for each region of depth",
    "values": "3. Bases for values",
    "neurons alone": "4. Merging neurons, nothing else cut",
}


def tables() -> str:
    """A table for each idea and teacher."""
    parts = [
        "# Four ideas: what was measured\n",
        f"Validation loss in nats per token. Students learn for {STEPS} steps of {STEP_TOKENS} tokens by",
        "forward KL; mean and standard deviation over orders of the text. The effect is the difference",
        "to the first row, seed by seed. Written by `python -m studies.ideas --table`.\n",
    ]
    rows = RESULTS.rows()
    for teacher in SETTINGS:
        mine = [row for row in rows if row["teacher"] == teacher]
        if not mine:
            continue
        parts.append(f"## {teacher}\n")
        bases = [variant for variant in STUDENTS if variant.neurons == DROPPED]
        parts += ["### 1. Weighting by the gradient\n", _distilled(mine, bases), ""]
        for idea, title in _BEFORE.items():
            found = [row for row in mine if row["idea"] == idea]
            parts += [f"### {title}\n", _undistilled(found), ""] if found else []
        for basis in (COORDINATE, WEIGHTED):
            some = [variant for variant in STUDENTS if variant.basis == basis]
            parts += [f"### 4. Merging neurons, {basis} basis, both widths cut\n", _distilled(mine, some), ""]
    return "\n".join(parts)


def _distilled(rows: Sequence[Row], variants: Sequence[Variant]) -> str:
    lines, reference = [], dict[int, float]()
    for variant in variants:
        found = [row for row in rows if (row["idea"], row["variant"]) == (STUDENT, variant.name)]
        after = {row["seed"]: row["after"] for row in found}
        reference = reference or after
        if found:
            compared = "" if after is reference else effect(after, reference)
            lines.append([variant.name, f"{found[0]['before']:.3f}", spread(list(after.values())), compared])
    return markdown(["", "after pruning", "after distillation", "effect"], lines)


def _undistilled(rows: Sequence[Row]) -> str:
    lines = [["teacher", f"{rows[0]['teacher_loss']:.3f}", ""]]
    for row in rows:
        lines.append([row["variant"], f"{row['before']:.3f}", f"{row['before'] - row['teacher_loss']:.3f}"])
    return markdown(["", "loss", "above the teacher"], lines)


def main() -> int:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--teacher", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", nargs="*", type=int, choices=SEEDS, default=list(SEEDS))
    asked = parser.parse_args()
    if not asked.table:
        apart(work, asked.teacher, asked.seed)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
