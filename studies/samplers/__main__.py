"""Which sampler finds most, on a problem whose every answer is known.

``python -m studies.samplers`` searches a space of the embedded teacher by formulas in place of models, with
every sampler, on rungs that are faithful and on rungs that mislead, for 16 seeds; the search is the real one,
with its rungs and promotion. It appends each result to ``results.jsonl`` beside this file as it comes, goes
on where it stopped, and writes ``RESULTS.md``. ``--table`` only writes it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from studies.bench.apart import processes
from studies.bench.results import Row, markdown
from studies.samplers.setting import BIASES, NOISE, PROMISED, SAMPLERS, TRIALS, resolved
from studies.samplers.work import HERE, RESULTS, work

_INTRODUCTION = """# Samplers: what was measured

Hypervolume of the candidates that a search scored, by their true objectives (loss after retraining and
latency, free of noise), as a share of the true Pareto front's among {architectures} architectures; the
reference is the worst of the space. Mean and its standard error over 16 seeds; noise of {noise} nats per
token. Every search has the rungs and the promotion of a run: half of what is scored is distilled, a quarter
of that for four times as long. On misleading rungs whoever ends best learns slowest. Written by
`python -m studies.samplers --table` from `results.jsonl`.
"""


def tables() -> str:
    """A table for each kind of rungs and, at the number of the promise, who was distilled and came last."""
    rows = RESULTS.rows()
    parts = [_INTRODUCTION.format(architectures=len(resolved().space), noise=NOISE)]
    for rungs in BIASES:
        mine = [row for row in rows if row["rungs"] == rungs]
        parts += [f"## {rungs.capitalize()} rungs\n", _by_trials(mine), ""]
        parts += [f"After {PROMISED} of them, by how far candidates came:\n", _by_rung(mine), ""]
    return "\n".join(parts)


def _by_trials(rows: Sequence[Row]) -> str:
    head = ["scored", *map(str, TRIALS)]
    return markdown(head, [[s, *(_mean(rows, s, n, "scored") for n in TRIALS)] for s in SAMPLERS])


def _by_rung(rows: Sequence[Row]) -> str:
    names = ("scored", "distilled", "last")
    shown = ["", "scored", "distilled at least shortly", "at the last rung"]
    return markdown(shown, [[s, *(_mean(rows, s, PROMISED, name) for name in names)] for s in SAMPLERS])


def _mean(rows: Sequence[Row], sampler: str, trials: int, name: str) -> str:
    some = [row[name] for row in rows if (row["sampler"], row["trials"]) == (sampler, trials)]
    if len(some) < 2:
        return ""
    return f"{statistics.mean(some):.4f} ± {statistics.stdev(some) / len(some) ** 0.5:.4f}"


def main() -> int:
    """Search what is missing, a process for each kind of rungs, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    if not parser.parse_args().table:
        with processes(len(BIASES)) as pool:
            list(pool.map(work, BIASES))
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
