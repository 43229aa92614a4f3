"""What holds on a real teacher: the questions of this project, asked of SmolLM2-135M-Instruct.

``python -m studies.real`` cuts students to 60% of their teacher in one way after the other, trains each for
about 50 thousand tokens and then for 400 thousand, on two orders of English books, and judges them by bits
per byte of held-out books and by minimal pairs of BLiMP. It appends each result to ``results.jsonl`` beside
this file as it comes, goes on where it stopped, and writes ``RESULTS.md``; ``--table`` alone writes it
without training. ``$SLIMSEARCH_SMOLLM2`` is the directory of the teacher, whose weights were dequantised from
Q4_1.
All of it takes nights on two cores: ``--parts`` and ``--steps`` choose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.bench.results import Row, effect, markdown, spread
from studies.bench.setting import SMOLLM2
from studies.real.variants import PARTS, Part, every_variant
from studies.real.work import HERE, RESULTS, TEACHER, Amounts, work

BLIMP = Path(SMOLLM2.data).parent / "blimp.jsonl"


def tables() -> str:
    """A table for each question, with the difference to its first variant."""
    rows = RESULTS.rows()
    parts = [
        "# What holds on a real teacher: what was measured\n",
        "Bits per byte of held-out English books, and accuracy on minimal pairs of BLiMP, of students of 60%",
        "of SmolLM2-135M-Instruct (dequantised from Q4_1); mean and standard deviation over the orders of",
        "the text, one where no deviation is given. Differences are taken order by order. *Before* is the",
        "loss straight after cutting, in nats per token.",
        "Written by `python -m studies.real --table` from `results.jsonl`.\n",
    ]
    for teacher in (row for row in rows if row["variant"] == TEACHER):
        parts.append(
            f"The teacher: {teacher['bits_per_byte']:.3f} bits per byte, accuracy {teacher['accuracy']:.3f} "
            f"± {teacher['accuracy_error']:.3f}, {teacher['parameters']:,} parameters.\n"
        )
    for part in PARTS.values():
        for steps in sorted({row["steps"] for row in rows if row["variant"] != TEACHER}):
            found = [row for row in rows if row["steps"] == steps]
            if lines := _lines(part, found):
                head = ["", "before", "bits per byte", "difference", "accuracy", "difference"]
                parts += [f"## {part.question}\n", f"After {steps} steps:\n", markdown(head, lines), ""]
    return "\n".join(parts)


def _lines(part: Part, rows: Sequence[Row]) -> list[list[str]]:
    """A line for each variant that was run; none without another than the first."""
    found = {one.name: [row for row in rows if row["variant"] == one.name] for one in part.variants}
    first = part.variants[0].name
    lines = []
    for name, mine in found.items():
        if mine:
            bits, right = _by_seed(mine, "bits_per_byte"), _by_seed(mine, "accuracy")
            known = name != first and found[first]
            lines.append(
                [
                    name,
                    f"{mine[0]['before']:.3f}",
                    spread([*bits.values()]),
                    effect(bits, _by_seed(found[first], "bits_per_byte")) if known else "",
                    spread([*right.values()]),
                    effect(right, _by_seed(found[first], "accuracy")) if known else "",
                ]
            )
    return lines if len(lines) > 1 else []


def _by_seed(rows: Sequence[Row], name: str) -> Mapping[int, float]:
    return {row["seed"]: row[name] for row in rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--steps", nargs="*", type=int, default=Amounts().steps)
    parser.add_argument("--seeds", nargs="*", type=int, default=Amounts().seeds)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    asked = parser.parse_args(arguments)
    if not asked.table:
        wanted = {variant for name in asked.parts for variant in PARTS[name].variants}
        variants = [variant for variant in every_variant() if variant in wanted]
        amounts = Amounts(steps=tuple(asked.steps), seeds=tuple(asked.seeds))
        work(SMOLLM2, BLIMP, variants, amounts, asked.threads)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
