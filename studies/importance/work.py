"""The runs of the study: every variant, on the text of three seeds, for one teacher."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from studies.bench.bench import Bench
from studies.bench.results import Results, Row
from studies.bench.setting import SETTINGS
from studies.importance.variants import VARIANTS, Students, Variant

HERE = Path(__file__).parent
RESULTS = Results(HERE / "results.jsonl", ("teacher", "study", "variant", "steps", "seed"))
STEPS, SEEDS = 32, (0, 1, 2)


def described(teacher: str, variant: Variant, seed: int) -> Row:
    """What a run is known by."""
    return {
        "teacher": teacher,
        "study": variant.study,
        "variant": variant.name,
        "steps": STEPS,
        "seed": seed,
    }


def work(teacher: str, studies: Sequence[str]) -> None:
    """Run what is missing of one teacher, one seed after the other."""
    torch.set_num_threads(1)
    wanted = [(variant, seed) for seed in SEEDS for variant in VARIANTS if variant.study in studies]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(SETTINGS[teacher], STEPS, Path(folder))
        students = Students(bench)
        for number, (variant, seed) in enumerate(wanted, 1):
            about = described(teacher, variant, seed)
            if not RESULTS.missing([about]):
                continue
            measured = twin(about, variant) or bench.distilled(students.student(variant, seed), STEPS, seed)
            row = {**about, **measured}
            RESULTS.add(row)
            print(f"{number} of {len(wanted)}: {row}", file=sys.stderr, flush=True)


def twin(about: Row, variant: Variant) -> Row | None:
    """What was measured of the same student in another study."""
    same = {
        (v.study, v.name)
        for v in VARIANTS
        if replace(v, study="", name="") == replace(variant, study="", name="")
    }
    for row in RESULTS.rows():
        alike = all(row[name] == about[name] for name in ("teacher", "steps", "seed"))
        if alike and (row["study"], row["variant"]) in same:
            return {name: row[name] for name in ("parameters", "before", "after", "seconds")}
    return None
