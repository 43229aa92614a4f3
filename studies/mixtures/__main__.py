"""What a student of a chat model learns from: books alone, conversations alone, or both.

``python -m studies.mixtures`` ranks SmolLM2-135M-Instruct (``$SLIMSEARCH_SMOLLM2`` is its directory) on each
mixture, distils its students on it on two orders of the text, and measures each on held-out books, on
held-out conversations, and by how often it ends its turn. Conversations are real ones and questions about
books that the books answer. Results are appended to ``results.jsonl`` beside this file as they come, and the
study goes on where it stopped; ``--table`` alone writes ``RESULTS.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from studies.bench.results import Row, markdown, spread
from studies.bench.setting import SMOLLM2, STEP_TOKENS
from studies.mixtures.work import HERE, MIXTURES, RESULTS, work

_STEPS = 48


def tables() -> str:
    """For each length of training, a row for each mixture."""
    rows = RESULTS.rows()
    parts = [
        "# What a student learns from: what was measured\n",
        f"Students of {SMOLLM2.name} (dequantised from Q4_1), ranked and trained on each mixture:",
        f"forward KL, cosine schedule with the rule's rate, steps of {STEP_TOKENS} tokens. Losses in nats",
        "per token, mean and standard deviation over orders of the text. Turns ended: within 200 tokens, of",
        "the prompts at which the teacher ends its own.",
        "Written by `python -m studies.mixtures --table` from `results.jsonl`.\n",
    ]
    for steps in sorted({row["steps"] for row in rows}):
        found = [row for row in rows if row["steps"] == steps]
        parts += [
            f"## {steps * STEP_TOKENS:,} tokens, {found[0]['parameters']:,} parameters\n",
            _table(found),
            "",
        ]
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    lines = [
        ["teacher", f"{rows[0]['teacher_books']:.3f}", f"{rows[0]['teacher_chats']:.3f}", ""],
    ]
    for name, (books, chats) in MIXTURES.items():
        mine = [row for row in rows if row["mixture"] == name]
        if mine:
            ended = ", ".join(f"{row['ended']} of {row['asked']}" for row in mine)
            losses = [spread([row[text] for row in mine]) for text in ("books", "chats")]
            lines.append([f"{books:.0%} books, {chats:.0%} conversations", *losses, ended])
    return markdown(["trained on", "loss on books", "loss on conversations", "turns ended"], lines)


def main() -> int:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the table of what is done")
    parser.add_argument("--steps", type=int, default=_STEPS, help=f"of {STEP_TOKENS} tokens each")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    asked = parser.parse_args()
    if not asked.table:
        real = Path(SMOLLM2.data).parent
        work(SMOLLM2, real / "books.jsonl", real / "conversations.json", asked.steps, asked.threads)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
