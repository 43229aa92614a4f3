"""What is there to be found near one budget, and how well searches find it.

``python -m studies.exhaustive`` distils every architecture near a budget of the embedded teacher at two rungs
and retrains it, with two seeds of the text, a process for each; then searches are replayed on the table, with
every sampler and rule of promotion, against tokens spent. It appends each result to ``results.jsonl`` and
``replays.jsonl`` as it comes, goes on where it stopped, and writes ``RESULTS.md``; ``--table``: only that.
"""

from __future__ import annotations

import argparse
import sys

from space.enumeration.hand_made import baselines
from studies.bench.apart import processes
from studies.exhaustive.searches import search_all
from studies.exhaustive.table import Table
from studies.exhaustive.tables import tables
from studies.exhaustive.work import HERE, RESULTS, SEEDS, resolved, work


def main() -> int:
    """Measure what is missing, search on it, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    asked = parser.parse_args()
    if not asked.table:
        with processes(len(SEEDS)) as pool:
            list(pool.map(work, SEEDS))
    run = resolved()
    found = [Table.of(RESULTS.rows(), seed) for seed in SEEDS]
    if not asked.table:
        search_all(run, found)
    by_hand = {name: a.label for name, a in baselines(run.space, run.axis_map.teacher).items()}
    (HERE / "RESULTS.md").write_text(tables(found, by_hand))
    return 0


if __name__ == "__main__":
    sys.exit(main())
