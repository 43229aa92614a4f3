"""How much text the order of layers needs, and whether it needs float32.

``python -m studies.ranking_samples [--large DIRECTORY]`` measures the loss without each layer on each block
of the calibration text, for the embedded teacher, stories260K and, if its directory is given, a 135M one.
From samples of the blocks follow orders, which are compared with that by all blocks, and students without the
cheapest layers, whose losses are measured. Results are appended to ``results.jsonl`` beside this file as they
come, and a study that was stopped goes on; ``RESULTS.md`` is written at the end. ``--table`` only writes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from studies.bench.apart import apart
from studies.ranking_samples.tables import tables
from studies.ranking_samples.work import HERE, texts, work


def main() -> int:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="write the tables of what is done")
    parser.add_argument("--large", type=Path, help="the directory of SmolLM2-135M-Instruct")
    parser.add_argument("--teacher", nargs="*", help="only these")
    asked = parser.parse_args()
    if not asked.table:
        apart(work, asked.teacher or list(texts(asked.large)), asked.large)
    (HERE / "RESULTS.md").write_text(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
