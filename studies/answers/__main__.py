"""What foretells how well a student answers: loss, margin, accuracy or divergence after a short distillation?

``python -m studies.answers`` distils students of the embedded teacher for a short and for a long time, and
judges them by the demo's pairs of Python; ``--teacher SmolLM2-135M-Instruct`` those of that teacher
(``$SLIMSEARCH_SMOLLM2`` is its directory) by BLiMP. Each figure after the short distillation is compared with
the accuracy after the long one, by Kendall's τ over the students. Results are appended to ``results.jsonl``
beside this file as they come, and the study goes on where it stopped; ``--table`` writes ``RESULTS.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from space.axes.architecture import Axis
from studies.answers.work import HERE, RESULTS, Plan, work
from studies.bench.results import Row, markdown
from studies.bench.setting import EMBEDDED, SMOLLM2, STEP_TOKENS
from studies.demo.pairs import PAIRS

PLANS = {
    EMBEDDED.name: Plan(
        EMBEDDED,
        str(PAIRS),
        {Axis.HIDDEN: (128, 104, 80), Axis.MLP: (352, 240, 160), Axis.LAYERS: (8, 6, 5)},
        16,
        (8, 64),
        240,
    ),
    SMOLLM2.name: Plan(
        SMOLLM2,
        str(Path(SMOLLM2.data).parent / "blimp.jsonl"),
        {Axis.HIDDEN: (576, 504, 432), Axis.MLP: (1536, 1152, 768), Axis.LAYERS: (30, 25, 20)},
        12,
        (4, 12),
        1340,
        calibration_blocks=32,
        validation_tokens=8192,
    ),
}
_DRAWS = 2000
#: Where less is better.
_LESS = ("loss", "kl")


def tables() -> str:
    """For each teacher and length, a row for each figure that may foretell."""
    rows = RESULTS.rows()
    parts = [
        "# What foretells how well a student answers: what was measured\n",
        "Kendall's τ between a figure after the short distillation and the accuracy after the long one, with",
        "its interval of 95% over drawn sets of students. `@n` is on n examples. Cost: seconds of scoring as",
        "a share of those of the short distillation.",
        "Written by `python -m studies.answers --table` from `results.jsonl`.\n",
    ]
    for key in sorted({_key(row) for row in rows}):
        found, teacher = [row for row in rows if _key(row) == key], key[0]
        short, long = (f"{number * STEP_TOKENS:,}" for number in key[1:])
        reached = [row["final"]["accuracy"] for row in found]
        parts += [
            f"## {teacher}: {len(found)} students, {short} tokens and {long}\n",
            f"Accuracy of the teacher {found[0]['of_teacher']['accuracy']:.3f}, of the students "
            f"{min(reached):.3f} to {max(reached):.3f}.\n",
            _table(found),
            "",
        ]
    return "\n".join(parts)


def _key(row: Row) -> tuple[str, int, int]:
    return row["teacher"], row["short"], row["long"]


def _table(rows: Sequence[Row]) -> str:
    final = [row["final"]["accuracy"] for row in rows]
    names = [name for name in rows[0]["early"] if not name.startswith("seconds")]
    lines = []
    for name in names:
        values = [row["early"][name] for row in rows]
        low, tau, high = tau_with_interval(values, final)
        sign = -1 if name.startswith(_LESS) else 1
        ends = sorted((sign * low, sign * high))
        lines.append([name, f"{sign * tau:.2f}", f"{ends[0]:.2f} to {ends[1]:.2f}", _cost(rows, name)])
    return markdown(["figure", "τ", "interval", "cost"], lines)


def _cost(rows: Sequence[Row], name: str) -> str:
    _, _, number = name.partition("@")
    if not number:
        return ""
    return f"{np.median([row['early'][f'seconds@{number}'] / row['distil_seconds'] for row in rows]):.1%}"


def tau_with_interval(values: Sequence[float], final: Sequence[float]) -> tuple[float, float, float]:
    """Return Kendall's τ between its ends of 95%, by drawing the students with replacement."""
    one, other = np.asarray(values), np.asarray(final)
    draws = np.random.default_rng(0).integers(len(one), size=(_DRAWS, len(one)))
    drawn = [_tau(one[draw], other[draw]) for draw in draws]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return float(low), _tau(one, other), float(high)


def _tau(one: np.ndarray, other: np.ndarray) -> float:
    return float(kendalltau(one, other).statistic) if len(set(one)) > 1 and len(set(other)) > 1 else np.nan


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the table of what is done")
    parser.add_argument("--teacher", choices=list(PLANS), default=EMBEDDED.name)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the text")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    asked = parser.parse_args(arguments)
    if not asked.table:
        work(PLANS[asked.teacher], asked.seed, asked.threads)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
