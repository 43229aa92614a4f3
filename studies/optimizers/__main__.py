"""The loss that AdamW in 8 bits costs.

``python -m studies.optimizers`` trains width-pruned students by AdamW and by AdamW in 8 bits, for as many
tokens as a rung and as a retraining have, on three orders of the text. It appends each result to
``results.jsonl`` beside this file as it comes, goes on where it stopped, and writes ``RESULTS.md``;
``--table`` alone writes it without training. ``--teachers`` names whose students are trained, by default
those of the two small teachers. SmolLM2-135M-Instruct takes hours; ``$SLIMSEARCH_SMOLLM2`` is its directory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from evaluators.distillation.optimizers import OptimizerName
from studies.bench.apart import apart
from studies.bench.results import Row, effect, markdown, spread
from studies.bench.setting import EMBEDDED, STEP_TOKENS, STORIES
from studies.optimizers.work import HERE, RESULTS, TEACHERS, lengths_of, work


def tables() -> str:
    """For each teacher: losses by optimiser and length, and the difference seed by seed."""
    rows = RESULTS.rows()
    parts = [
        "# AdamW in 8 bits: what was measured\n",
        "Validation loss in nats per token of width-pruned students, mean and standard deviation over",
        "three orders of the text: forward KL, cosine schedule with the rule's rate, arithmetic in bfloat16,",
        f"losses measured in float32. Steps have {STEP_TOKENS} tokens. The difference to AdamW is taken seed",
        "by seed. Bytes are those of weights, gradients and states. Seconds were measured beside other work.",
        "Written by `python -m studies.optimizers --table` from `results.jsonl`.\n",
    ]
    for teacher in TEACHERS:
        found = [row for row in rows if row["teacher"] == teacher]
        if found:
            parts += [f"## {teacher}, students of {found[0]['parameters']:,} parameters\n"]
            parts += [f"Straight after pruning {found[0]['before']:.3f}.\n", _table(teacher, found), ""]
    return "\n".join(parts)


def _table(teacher: str, rows: Sequence[Row]) -> str:
    lines = []
    for steps in lengths_of(teacher):
        by_name = {name: _losses(rows, name, steps) for name in OptimizerName}
        for name, losses in by_name.items():
            if not losses:
                continue
            mine = [row for row in rows if (row["optimizer"], row["steps"]) == (name, steps)]
            difference = "" if name is OptimizerName.ADAMW else effect(losses, by_name[OptimizerName.ADAMW])
            seconds = sum(row["seconds"] for row in mine) / len(mine)
            size = mine[0]["bytes"] / mine[0]["parameters"]
            loss = spread([*losses.values()])
            lines.append([name.value, str(steps), loss, difference, f"{seconds:.0f}", f"{size:.2f}"])
    return markdown(["", "steps", "loss", "difference", "seconds", "bytes a parameter"], lines)


def _losses(rows: Sequence[Row], name: OptimizerName, steps: int) -> dict[int, float]:
    """Losses after training, by seed."""
    return {row["seed"]: row["after"] for row in rows if (row["optimizer"], row["steps"]) == (name, steps)}


def main() -> int:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--teachers", nargs="*", choices=TEACHERS, default=[STORIES.name, EMBEDDED.name])
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    asked = parser.parse_args()
    if not asked.table:
        apart(work, asked.teachers, asked.threads)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
